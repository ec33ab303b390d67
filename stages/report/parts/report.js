// Draws every chart of the page when it comes into view. The specification stands in the chart's own element.
const options = { mode: "vega", renderer: "svg", actions: false, ast: true, tooltip: { theme: "custom" } };
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((entry) => entry.isIntersecting)) {
    watcher.unobserve(entry.target);
    vegaEmbed(entry.target, JSON.parse(entry.target.firstElementChild.textContent), options);
  }
}, { rootMargin: "600px" });
for (const chart of document.querySelectorAll(".chart")) watcher.observe(chart);
