// What MathJax is to render: the elements that the Markdown extension has marked, and nothing else.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]], processEscapes: true, macros: { thickspace: "\\;" } },
  options: { ignoreHtmlClass: ".*", processHtmlClass: "arithmatex" },
  startup: {
    // A formula in a line that is wider than a phone scrolls by itself.
    pageReady: () =>
      MathJax.startup.defaultPageReady().then(() => {
        for (const formula of document.querySelectorAll("span.arithmatex")) {
          const width = formula.closest("p, li, dd, td")?.clientWidth ?? Infinity;
          formula.classList.toggle("wide", formula.getBoundingClientRect().width > width);
        }
      }),
  },
};
