// Names for what the theme, the widgets and the bibliography leave without one, so that a screen
// reader says what a reader sees. Icons and widgets come late, hence the observer.
(() => {
  "use strict";

  function mend() {
    for (const button of document.querySelectorAll(".search-button-field"))
      button.removeAttribute("aria-label"); // the text in it says more
    for (const icon of document.querySelectorAll("button[aria-label] svg[role='img']")) {
      icon.querySelector("title")?.remove(); // the button has a name
      icon.setAttribute("role", "presentation");
    }
    for (const summary of document.querySelectorAll("summary[aria-label]"))
      summary.removeAttribute("aria-label"); // its text says what is folded
    for (const entry of document.querySelectorAll(".citation-list > .citation"))
      entry.setAttribute("role", "listitem");
    for (const handle of document.querySelectorAll(".widget-slider .noUi-handle")) {
      const label = handle.closest(".widget-slider").querySelector(".widget-label");
      handle.setAttribute("aria-label", label?.textContent || "slider");
    }
    for (const image of document.querySelectorAll("img.widget-image")) {
      const box = image.closest(".widget-vbox");
      const labels = [...(box?.querySelectorAll(".widget-label") ?? [])];
      image.alt = "Picture at " + labels.map((label) => label.textContent).join(": ");
    }
  }

  // On a phone a wide picture is small: a touch opens it alone, to be enlarged.
  function openable() {
    for (const image of document.querySelectorAll("article img[src^='_images/']")) {
      if (image.closest("a")) continue;
      const link = document.createElement("a");
      link.href = image.src;
      link.title = "Open the picture alone";
      image.replaceWith(link);
      link.append(image);
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    mend();
    openable();
    const changes = { childList: true, subtree: true };
    const observer = new MutationObserver(() => {
      observer.disconnect();
      mend();
      observer.observe(document.body, changes);
    });
    observer.observe(document.body, changes);
  });
})();
