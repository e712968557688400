// Widgets typeset their labels through MathJax 2's interface; the pages load MathJax 3.
if (window.MathJax?.startup) {
  MathJax.Hub = {
    Queue: ([, , element]) =>
      MathJax.startup.promise.then(() => MathJax.typesetPromise([element])),
  };
}
