// What MathJax is to render: the elements that the Markdown extension has marked, and nothing else.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]], processEscapes: true, macros: { thickspace: "\\;" } },
  options: { ignoreHtmlClass: ".*", processHtmlClass: "arithmatex" },
};
