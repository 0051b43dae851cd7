// The report's rows and points lead to the viewer. In a table's column of patients, each id becomes a link (elsewhere a number may
// look like one); a point whose label begins with an id opens the viewer by a click. Belongs to a shared bundle: the report itself knows nothing of it.
(function () {
  "use strict";
  var study = window.CURVAS;
  if (!study) { return; }
  var known = new Map(study.patients.map(function (one) { return [one.id, one]; }));
  var organs = new Map();
  study.organs.forEach(function (one) { organs.set(one.name, one.id); organs.set(one.id, one.id); });

  function address(patient, words) {
    var hash = new URLSearchParams({ patient: patient });
    (words || []).forEach(function (word) {
      if (organs.has(word)) { hash.set("organ", organs.get(word)); }
      if (word in known.get(patient).files) { hash.set("predictor", word); }
    });
    return "viewer.html#" + hash;
  }

  function linked(cell) {
    var id = cell.textContent.trim();
    if (!known.has(id) || cell.querySelector("a")) { return; }
    var words = Array.from(cell.parentElement.children, function (other) { return other.textContent.trim(); });
    var link = document.createElement("a");
    link.href = address(id, words);
    link.title = study.words.open_viewer.replace("{patient}", id);
    while (cell.firstChild) { link.appendChild(cell.firstChild); }
    cell.appendChild(link);
  }

  function follow(plot) {
    plot.on("plotly_click", function (event) {
      var point = event.points[0];
      var text = [point.hovertext, point.text].find(function (one) { return typeof one === "string" && one; }) || "";
      var words = text.split(/<br>|, /).map(function (word) { return word.trim(); });
      if (known.has(words[0])) { window.location.href = address(words[0], words.concat(point.x, point.data.name)); }
    });
  }

  function ready() {
    document.querySelectorAll("table").forEach(function (table) {
      var heads = Array.from(table.querySelectorAll("thead th"), function (head) { return head.textContent.trim(); });
      var at = heads.indexOf(study.column);
      if (at >= 0) { table.querySelectorAll("tbody tr").forEach(function (row) { linked(row.cells[at]); }); }
    });
    var to = document.querySelector("nav");
    if (to) {
      var link = document.createElement("a");
      link.href = "viewer.html";
      link.textContent = study.words.viewer;
      to.prepend(link);
    }
    document.querySelectorAll(".js-plotly-plot").forEach(follow);
    document.documentElement.dataset.links = String(document.querySelectorAll("td a[href^='viewer.html']").length);
  }

  if (document.readyState === "complete") { ready(); } else { window.addEventListener("load", ready); }
})();
