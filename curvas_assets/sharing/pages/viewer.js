// The viewer of a shared bundle: one patient at a time, worst first. Opens from the disk: volumes arrive as scripts
// (`viewer/data/<patient>.js`, which call `curvasVolumes`), because a page from file:// may not fetch. NiiVue draws.
(function () {
  "use strict";
  var STUDY = window.CURVAS, WORDS = STUDY.words;
  var RAMPS = { entropy: "inferno", mutual_information: "viridis", uncertainty: "plasma", risk: "hot" };
  var FAINTEST = 0.03; // share of a map's top below which it is transparent
  var byId = function (id) { return document.getElementById(id); };
  var html = document.documentElement;
  var nv, loaded = null, layers = [], opacities = new Map(), asked = 0, organ = "";
  var queue = Promise.resolve();
  var waiting = new Map(), facts = new Map();

  function number(value, digits) {
    if (value === null || value === undefined || Number.isNaN(value)) { return "–"; }
    return value.toLocaleString(STUDY.language, { maximumSignificantDigits: digits || 3 });
  }
  function said(key, values) {
    return WORDS[key].replace(/\{(\w+)\}/g, function (_, name) { return values[name]; });
  }
  function make(tag, properties, children) {
    var one = Object.assign(document.createElement(tag), properties || {});
    (children || []).forEach(function (child) { one.append(child); });
    return one;
  }
  function tell(text) { byId("message").textContent = text; }
  function state(name) { html.dataset.state = name; }

  // Volumes ----------------------------------------------------------------------------------------------------------

  window.curvasVolumes = function (file, content) {
    facts.set(file, content);
    var resolve = waiting.get(file);
    if (resolve) { waiting.delete(file); resolve(content); }
  };
  function fetched(file) { // one script at a time is enough, and each is read once
    if (facts.has(file)) { return Promise.resolve(facts.get(file)); }
    return new Promise(function (resolve, reject) {
      function failed(word) { waiting.delete(file); reject(new Error(said(word, { file: file }))); }
      waiting.set(file, resolve);
      document.head.append(make("script", { src: file, onerror: function () { failed("no_file"); },
        onload: function () { if (waiting.has(file)) { failed("damaged_file"); } } })); // it ran, and handed over nothing
    });
  }
  function bytes(text) {
    var raw = atob(text), out = new Uint8Array(raw.length);
    for (var i = 0; i < raw.length; i += 1) { out[i] = raw.charCodeAt(i); }
    return out.buffer;
  }
  function rgb(colour) { return [1, 3, 5].map(function (at) { return parseInt(colour.slice(at, at + 2), 16); }); }
  function labelColours(values) { // by label, or by the study's own values; the background is transparent
    var colours = [[0, 0, 0]].concat(STUDY.organs.map(function (one) { return rgb(one.colour); }));
    var channel = function (at) { return colours.map(function (one) { return one[at]; }); };
    return { R: channel(0), G: channel(1), B: channel(2), A: colours.map(function (_, at) { return at ? 255 : 0; }),
      I: values || colours.map(function (_, at) { return at; }), labels: [""].concat(STUDY.organs.map(function (one) { return one.name; })) };
  }
  function coloured(image, volume) { // a map in its colours
    image.colormap = RAMPS[volume.name] || "inferno";
    image.cal_min = FAINTEST * volume.top; image.cal_max = volume.top;
  }
  function named(volume) {
    if (volume.kind === "scan") { return WORDS.scan; }
    if (volume.dropped) { return volume.file; }
    if (volume.kind === "map") { return WORDS["map_" + volume.name]; }
    return volume.kind === "segmentation" ? said("segmentation_of", { predictor: volume.name }) : volume.name;
  }

  function show(patient, predictor) { // one after the other: NiiVue lists a volume whenever it has read it
    var mine = (asked += 1);
    state("loading");
    queue = queue.then(function () { return mine === asked ? load(patient, predictor, mine) : null; });
  }
  async function load(patient, predictor, mine) {
    tell(said("loading", { patient: patient.id }));
    try {
      var files = patient.files, own = await fetched(files[predictor]);
      var base = own.volumes.some(function (one) { return one.kind === "scan"; }) ? own : await fetched(files[patient.lead]);
      if (mine !== asked) { return; }
      var wanted = own === base ? own.volumes
        : base.volumes.filter(function (one) { return one.kind === "scan" || one.kind === "annotation"; }).concat(own.volumes);
      while (nv.volumes.length) { nv.removeVolume(nv.volumes[0]); }
      layers = [];
      var scan = wanted.find(function (one) { return one.kind === "scan"; });
      await nv.loadFromArrayBuffer(bytes(scan.data), scan.file);
      var first = nv.volumes[0], Image = first.constructor;
      first.colormap = "gray"; first.cal_min = scan.window[0]; first.cal_max = scan.window[1];
      layers.push({ volume: scan, image: first });
      for (var volume of wanted) {
        if (volume.kind === "scan") { continue; }
        var image = await Image.loadFromUrl({ url: bytes(volume.data), name: volume.file, colorbarVisible: false });
        if (mine !== asked) { return; }
        if (volume.kind === "map") { coloured(image, volume); } else { image.setColormapLabel(labelColours()); }
        layers.push({ volume: volume, image: image });
      }
      loaded = { patient: patient, predictor: predictor, facts: own };
      layers.forEach(function (one) { if (strength(one.volume) > 0) { put(one, strength(one.volume)); } });
      nv.updateGLVolume();
      controls();
      jump(organ && own.organs[organ] ? own.organs[organ] : own.most_uncertain_mm || own.centre_mm);
      tell("");
      state("ready");
    } catch (error) {
      if (mine === asked) { tell(error.message); state("failed"); console.error(error); }
    }
  }
  function dropped(event) { // further layers; NiiVue itself would put them in the place of the scan
    event.preventDefault();
    event.stopPropagation();
    var mine = asked;
    Array.from(event.dataTransfer.files).forEach(function (file) {
      queue = queue.then(function () { return mine === asked && html.dataset.state === "ready" ? add(file, mine) : null; });
    });
  }
  async function add(file, mine) {
    try {
      var content = await file.arrayBuffer();
      var image = await layers[0].image.constructor.loadFromUrl({ url: content, name: file.name, colorbarVisible: false });
      if (mine !== asked) { return; }
      var name = file.name.replace(/\.nii(\.gz)?$/, ""), volume = { kind: "map", name: name, file: file.name, dropped: true };
      if (/^labels/.test(name)) {
        volume.kind = "labels";
        image.setColormapLabel(labelColours([0].concat(STUDY.organs.map(function (one) { return one.value; }))));
      } else {
        volume.top = image.global_max;
        volume.unit = /^(entropy|mutual_information)$/.test(name) ? "nat" : "";
        coloured(image, volume);
      }
      layers.filter(function (one) { return key(one.volume) === key(volume); }).forEach(function (one) { set(one, false, 0.5); });
      layers = layers.filter(function (one) { return key(one.volume) !== key(volume); }).concat({ volume: volume, image: image });
      set(layers[layers.length - 1], true, volume.kind === "map" ? 0.7 : 0.5);
      controls();
    } catch (error) { tell(said("damaged_file", { file: file.name })); console.warn(error); }
  }
  function key(volume) {
    if (volume.dropped) { return "dropped " + volume.file; }
    return volume.kind === "segmentation" ? "segmentation" : volume.kind + " " + volume.name;
  }
  function strength(volume) {
    if (volume.kind === "scan") { return 0; } // it is there already
    var kept = opacities.get(key(volume));
    return kept ? kept.on * kept.opacity : volume.kind === "segmentation" ? 0.5 : 0;
  }
  function put(layer, opacity) {
    layer.image.opacity = opacity;
    if (nv.volumes.indexOf(layer.image) < 0) { nv.addVolume(layer.image); }
  }
  function set(layer, on, opacity) {
    opacities.set(key(layer.volume), { on: on ? 1 : 0, opacity: opacity });
    if (on) { put(layer, opacity); } else if (nv.volumes.indexOf(layer.image) > 0) { nv.removeVolume(layer.image); }
    nv.updateGLVolume();
    readOut();
  }

  // Places -----------------------------------------------------------------------------------------------------------

  function jump(mm) {
    if (!mm) { return; }
    nv.scene.crosshairPos = nv.mm2frac(mm);
    nv.createOnLocationChange();
    nv.drawScene();
  }
  function here() {
    var mm = nv.frac2mm(nv.scene.crosshairPos);
    return [mm[0], mm[1], mm[2]];
  }
  function valueAt(layer, mm) {
    var at = layer.image.mm2vox(mm), value = layer.image.getValue(at[0], at[1], at[2], 0), volume = layer.volume;
    if (volume.kind === "scan" || volume.kind === "map") { return number(value) + (volume.unit ? "\u00a0" + volume.unit : ""); }
    var found = volume.kind === "labels" ? STUDY.organs.find(function (one) { return one.value === Math.round(value); })
      : STUDY.organs[Math.round(value) - 1];
    return found ? found.name : "–";
  }
  function readOut() {
    if (!layers.length || !nv.volumes.length) { return; }
    var mm = here(), body = byId("values").tBodies[0];
    body.replaceChildren.apply(body, [["x, y, z", mm.map(function (one) { return number(one, 4); }).join("; ") + "\u00a0mm"]]
      .concat(layers.map(function (one) { return [named(one.volume), valueAt(one, mm)]; }))
      .map(function (pair) { return make("tr", {}, pair.map(function (text) { return make("td", { textContent: text }); })); }));
  }

  // Controls ---------------------------------------------------------------------------------------------------------

  function ramp(name) {
    var lut = nv.colormap(name), stops = [];
    for (var at = 16; at < 256; at += 24) { stops.push("rgb(" + lut[4 * at] + "," + lut[4 * at + 1] + "," + lut[4 * at + 2] + ")"); }
    return "linear-gradient(to right," + stops.join(",") + ")";
  }
  function controls() {
    var patient = loaded.patient, at = STUDY.patients.indexOf(patient);
    byId("patient").textContent = patient.id;
    byId("previous").disabled = at === 0;
    byId("next").disabled = at === STUDY.patients.length - 1;
    document.querySelectorAll("#list a").forEach(function (one, index) {
      if (index === at) { one.setAttribute("aria-current", "true"); one.scrollIntoView({ block: "nearest" }); } else { one.removeAttribute("aria-current"); }
    });
    var names = Object.keys(patient.files);
    byId("predictor").replaceChildren.apply(byId("predictor"), names.map(function (one) {
      return make("option", { value: one, textContent: one, selected: one === loaded.predictor });
    }));
    byId("predictor-label").hidden = names.length < 2;
    var places = [["uncertain", WORDS.most_uncertain]].concat(
      STUDY.organs.filter(function (one) { return loaded.facts.organs[one.id]; }).map(function (one) { return [one.id, one.name]; }));
    byId("place").replaceChildren.apply(byId("place"), [make("option", { value: "", textContent: "…" })].concat(places.map(function (pair) {
      return make("option", { value: pair[0], textContent: pair[1] });
    })));
    byId("rows").replaceChildren.apply(byId("rows"), layers.filter(function (one) { return one.volume.kind !== "scan"; }).map(row));
    byId("resolution").textContent = said("resolution", {
      shown: loaded.facts.spacing_mm.map(function (one) { return number(one); }).join(" × "),
      scan: loaded.facts.scan_spacing_mm.map(function (one) { return number(one); }).join(" × "),
    }) + (loaded.facts.not_annotated.length ? " " + said("not_annotated", { annotators: loaded.facts.not_annotated.join(", ") }) : "");
    document.title = patient.id + " – " + STUDY.title;
    document.querySelector("meta[name=description]").content = byId("resolution").textContent;
  }
  function row(layer) {
    var volume = layer.volume, now = strength(volume), opacity = now || (volume.kind === "map" ? 0.7 : 0.5);
    var box = make("input", { type: "checkbox", checked: now > 0 });
    var slider = make("input", { type: "range", min: 0.05, max: 1, step: 0.05, value: opacity, title: WORDS.opacity });
    slider.setAttribute("aria-label", WORDS.opacity + ", " + named(volume));
    box.onchange = function () { set(layer, box.checked, Number(slider.value)); };
    slider.oninput = function () { box.checked = true; set(layer, true, Number(slider.value)); };
    var parts = [make("label", {}, [box, make("span", { textContent: named(volume) })]), slider];
    if (volume.kind === "map") {
      var unit = volume.unit ? "\u00a0" + volume.unit : "", bar = make("i");
      bar.style.background = ramp(RAMPS[volume.name] || "inferno");
      parts.push(make("div", { className: "ramp" }, [make("span", { textContent: "0" }), bar, make("span", { textContent: number(volume.top) + unit })]));
    }
    var line = make("div", { className: "row", title: volume.kind === "map" && WORDS["about_" + volume.name] || "" }, parts);
    line.dataset.layer = key(volume);
    return line;
  }
  function legend() {
    byId("legend").replaceChildren.apply(byId("legend"), STUDY.organs.map(function (one) {
      var swatch = make("span", { className: "swatch" });
      swatch.style.background = one.colour;
      var to = make("button", { type: "button", title: said("go_to_organ", { organ: one.name }) }, [swatch, make("span", { textContent: one.name })]);
      to.onclick = function () { goTo(one.id); };
      return make("li", {}, [to]);
    }));
  }
  function goTo(place) {
    if (!loaded || !place) { return; }
    organ = place === "uncertain" ? "" : place;
    jump(organ ? loaded.facts.organs[organ] : loaded.facts.most_uncertain_mm);
  }
  function step(by) {
    var at = STUDY.patients.findIndex(function (one) { return loaded && one === loaded.patient; }) + by;
    if (STUDY.patients[at]) { window.location.hash = new URLSearchParams({ patient: STUDY.patients[at].id }); }
  }
  function layout(name) {
    var types = { all: nv.sliceTypeMultiplanar, axial: nv.sliceTypeAxial, coronal: nv.sliceTypeCoronal, sagittal: nv.sliceTypeSagittal, render: nv.sliceTypeRender };
    byId("layout").value = name;
    nv.setSliceType(types[name]);
  }
  var LAYOUTS = ["all", "axial", "coronal", "sagittal", "render"];
  var KEYS = [
    ["n", "next", function () { step(1); }], ["p", "previous", function () { step(-1); }],
    ["1 … 9", "toggle_layer", null], ["c", "contours", function () { byId("contours").click(); }],
    ["u", "most_uncertain", function () { goTo("uncertain"); }],
    ["o", "next_organ", function () {
      var there = STUDY.organs.filter(function (one) { return loaded && loaded.facts.organs[one.id]; });
      if (there.length) { goTo(there[(there.findIndex(function (one) { return one.id === organ; }) + 1) % there.length].id); }
    }],
    ["v", "layout", function () { layout(LAYOUTS[(LAYOUTS.indexOf(byId("layout").value) + 1) % LAYOUTS.length]); }],
    ["h j k l", "crosshair", null], ["?", "keys", function () { byId("help").showModal(); }],
  ];
  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) { return; }
    if (/^[1-9]$/.test(event.key)) {
      var box = document.querySelectorAll("#rows input[type=checkbox]")[Number(event.key) - 1];
      if (box) { box.click(); }
      return;
    }
    var found = KEYS.find(function (one) { return one[0] === event.key && one[2]; });
    if (found) { found[2](); event.preventDefault(); }
  }

  // Page -------------------------------------------------------------------------------------------------------------

  function words() {
    html.lang = STUDY.language;
    document.head.append(make("meta", { name: "description", content: "" }));
    document.title = STUDY.title;
    byId("title").textContent = STUDY.title;
    document.querySelectorAll("[data-word]").forEach(function (one) { one.textContent = WORDS[one.dataset.word]; });
    document.querySelectorAll("[data-label]").forEach(function (one) { one.title = WORDS[one.dataset.label]; one.setAttribute("aria-label", one.title); });
    byId("order").textContent = STUDY.order;
    byId("omitted").textContent = STUDY.omitted.length ? said("omitted", { patients: STUDY.omitted.join(", ") }) : "";
    byId("list").replaceChildren.apply(byId("list"), STUDY.patients.map(function (one) {
      var link = make("a", { href: "#" + new URLSearchParams({ patient: one.id }) }, [
        make("span", { textContent: one.id }), make("span", { textContent: number(one.value), title: STUDY.metric })]);
      return make("li", {}, [link]);
    }));
    byId("keys").replaceChildren.apply(byId("keys"), KEYS.flatMap(function (one) {
      return [make("dt", {}, one[0].split(" ").map(function (part) { return part === "…" ? " … " : make("kbd", { textContent: part }); })), make("dd", { textContent: WORDS[one[1]] })];
    }));
    byId("layout").replaceChildren.apply(byId("layout"), LAYOUTS.map(function (one) { return make("option", { value: one, textContent: WORDS["layout_" + one] }); }));
  }
  function fromHash() {
    var given = new URLSearchParams(window.location.hash.slice(1));
    var patient = STUDY.patients.find(function (one) { return one.id === given.get("patient"); });
    if (given.get("patient") && !patient) { tell(said("no_patient", { patient: given.get("patient") })); state("failed"); return; }
    patient = patient || STUDY.patients[0];
    if (!patient) { tell(WORDS.no_patients); state("failed"); return; }
    organ = given.get("organ") || organ;
    var predictor = given.get("predictor");
    predictor = predictor && patient.files[predictor] ? predictor : patient.lead;
    if (html.dataset.state === "ready" && loaded.patient === patient && loaded.predictor === predictor) { goTo(given.get("organ")); return; }
    show(patient, predictor);
  }
  async function start() {
    words();
    if (!document.createElement("canvas").getContext("webgl2")) { tell(WORDS.no_webgl); state("failed"); return; }
    nv = new window.Niivue({
      isRadiologicalConvention: true, sagittalNoseLeft: true, backColor: [0, 0, 0, 1], crosshairColor: [1, 0.85, 0.2, 0.8], crosshairWidth: 1, crosshairWidthUnit: "mm",
      multiplanarShowRender: 1, show3Dcrosshair: true, logLevel: "error", loadingText: "", viewModeHotKey: "", clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "", isColorbar: false, dragAndDropEnabled: false,
    });
    nv.onLocationChange = readOut;
    await nv.attachToCanvas(byId("canvas"));
    legend();
    byId("previous").onclick = function () { step(-1); };
    byId("next").onclick = function () { step(1); };
    byId("help-button").onclick = function () { byId("help").showModal(); };
    byId("layout").onchange = function (event) { layout(event.target.value); };
    byId("place").onchange = function (event) { goTo(event.target.value); event.target.value = ""; };
    byId("contours").onchange = function (event) { nv.setAtlasOutline(event.target.checked ? 1 : 0); };
    byId("predictor").onchange = function (event) {
      window.location.hash = new URLSearchParams({ patient: loaded.patient.id, predictor: event.target.value });
    };
    byId("canvas-frame").addEventListener("dragover", function (event) { event.preventDefault(); });
    byId("canvas-frame").addEventListener("drop", dropped, true);
    layout("all");
    window.addEventListener("keydown", pressed);
    window.addEventListener("hashchange", fromHash);
    fromHash();
  }

  window.curvasViewer = { // for tests, and for people at the console
    get niivue() { return nv; },
    get shown() { return nv.volumes.slice(1).map(function (image) { return key(layers.find(function (one) { return one.image === image; }).volume); }); },
    get patient() { return loaded && loaded.patient.id; },
    get crosshair_mm() { return here(); },
  };
  start();
})();
