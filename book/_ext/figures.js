// Draws the plotly figures of a page: as wide as the text, in the colours of the light or dark
// theme, with frames and sliders. The data stand in the page (tools/pages.py).
(() => {
  "use strict";
  const config = { responsive: true, displaylogo: false, displayModeBar: "hover" };
  const NARROW = 500; // px; below this, room at the sides goes to the picture

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const get = (name, fallback) => style.getPropertyValue(name).trim() || fallback;
    return {
      text: get("--pst-color-text-base", "#323232"),
      line: get("--pst-color-border", "#c9c9c9"),
      surface: get("--pst-color-surface", "#f5f5f5"),
    };
  }

  // Layout changes that give a figure the page's colours, as plotly's dotted names.
  function themed(layout) {
    const { text, line, surface } = colours();
    const update = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      "font.color": text,
      "legend.bgcolor": "rgba(0,0,0,0)",
    };
    for (const name of Object.keys(layout).concat("xaxis", "yaxis")) {
      if (/^[xy]axis\d*$/.test(name)) {
        update[`${name}.gridcolor`] = line;
        update[`${name}.zerolinecolor`] = line;
        update[`${name}.linecolor`] = line;
      } else if (/^scene\d*$/.test(name)) {
        for (const axis of ["xaxis", "yaxis", "zaxis"]) {
          update[`${name}.${axis}.gridcolor`] = line;
          update[`${name}.${axis}.zerolinecolor`] = line;
          update[`${name}.${axis}.backgroundcolor`] = "rgba(0,0,0,0)";
        }
      }
    }
    (layout.sliders || []).forEach((_, i) => {
      update[`sliders[${i}].bgcolor`] = surface;
      update[`sliders[${i}].activebgcolor`] = text;
      update[`sliders[${i}].bordercolor`] = line;
      update[`sliders[${i}].tickcolor`] = line;
    });
    (layout.updatemenus || []).forEach((_, i) => {
      update[`updatemenus[${i}].bgcolor`] = surface;
      update[`updatemenus[${i}].bordercolor`] = line;
    });
    return update;
  }

  // How many entries a legend would have.
  function legendEntries(data) {
    return data.filter((trace) => trace.name && trace.showlegend !== false
      && /^(scatter|scattergl|bar|box|violin|histogram)$/.test(trace.type ?? "scatter")).length;
  }

  function fitted({ data, layout }, width) {
    const result = { ...layout, autosize: true };
    delete result.width; // the container's max-width keeps it
    result.title = { ...layout.title, y: 1, yref: "container", yanchor: "top", pad: { t: 8 } };
    const top = layout.title?.text ? 60 : 30;
    const margin = { t: top, b: 50, l: 60, r: 20, ...layout.margin };
    result.margin = margin;
    if (width < NARROW) {
      margin.l = Math.min(margin.l, 44);
      margin.r = Math.min(margin.r, 12);
      const entries = legendEntries(data);
      if (entries > 1 && layout.showlegend !== false)
        margin.t = Math.max(margin.t, top + 20 * entries);
      const picture = data.some((trace) => trace.type === "image");
      if (picture && layout.height) result.height = 0.65 * layout.height; // less wide, less high
      result.title.font = { ...result.title.font, size: 12 };
      result.legend = { ...result.legend, orientation: "h", x: 0, y: 1, yanchor: "bottom" };
    }
    return result;
  }

  // Plotly's sliders know the mouse only: let each be reached with Tab and moved with the arrows.
  function steerable(target) {
    target.querySelectorAll(".slider-group").forEach((group, index) => {
      const slider = () => target._fullLayout.sliders[index];
      const say = () => {
        const { active, steps, currentvalue } = slider();
        const name = currentvalue.prefix?.replace(/[\s=:]+$/, "") || "slider";
        const now = { "aria-label": name, "aria-valuemin": 0, "aria-valuemax": steps.length - 1,
          "aria-valuenow": active, "aria-valuetext": steps[active].label };
        for (const [key, value] of Object.entries(now)) group.setAttribute(key, value);
      };
      group.setAttribute("role", "slider");
      group.setAttribute("tabindex", "0");
      say();
      target.on("plotly_sliderchange", say);
      group.addEventListener("keydown", async (event) => {
        const { active, steps } = slider();
        const last = steps.length - 1;
        const left = Math.max(active - 1, 0), right = Math.min(active + 1, last);
        const next = { ArrowLeft: left, ArrowDown: left, ArrowRight: right, ArrowUp: right,
          Home: 0, End: last }[event.key];
        if (next === undefined) return;
        event.preventDefault();
        event.stopPropagation(); // the page would be turned
        await Plotly.relayout(target, `sliders[${index}].active`, next);
        await Plotly[steps[next].method](target, ...steps[next].args);
        say();
      });
    });
  }

  async function draw(place) {
    const source = place.querySelector("script[type='application/json']");
    const figure = JSON.parse(source.textContent);
    const target = document.createElement("div");
    place.append(target);
    const layout = fitted(figure, place.clientWidth);
    await Plotly.newPlot(target, figure.data, layout, config);
    if (figure.frames.length) await Plotly.addFrames(target, figure.frames);
    await Plotly.relayout(target, themed(target.layout));
    steerable(target);
    place.style.minHeight = ""; // kept the place until here
    target.dataset.drawn = "yes";
    return target;
  }

  document.addEventListener("DOMContentLoaded", async () => {
    const places = [...document.querySelectorAll(".plotly-figure")];
    const drawn = [];
    for (const place of places) drawn.push(await draw(place));
    new MutationObserver(() => {
      for (const target of drawn) Plotly.relayout(target, themed(target.layout));
    }).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  });
})();
