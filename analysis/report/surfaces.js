"use strict";
// Draws each group of surfaces when it comes near the window, and keeps one camera for a group.
(() => {
  const START = { eye: { x: 1.4, y: -1.4, z: 0.9 }, up: { x: 0, y: 0, z: 1 }, center: { x: 0, y: 0, z: -0.2 } };
  const STEP = Math.PI / 12;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function axis(title) {
    const [ink, line] = [colour("--ink"), colour("--line")];
    return {
      title: { text: title, font: { size: 11 } }, color: ink, gridcolor: line, zerolinecolor: line,
      tickfont: { size: 10 }, showbackground: false, showspikes: false,
    };
  }

  function scene(data, camera) {
    const [low, high] = data.range;
    const z = { range: [low, high + data.room], tickvals: data.ticks, ticktext: data.ticktext };
    return {
      xaxis: axis(data.x), yaxis: axis(data.y), zaxis: { ...axis(""), ...z },
      aspectmode: "manual", aspectratio: { x: 1, y: 1, z: 0.75 }, dragmode: "turntable", camera,
    };
  }

  function layout(data, camera) {
    return {
      scene: scene(data, camera), margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", color: colour("--ink") },
    };
  }

  function trace(data, panel) {
    const [low, high] = data.range;
    return {
      type: "surface", x: panel.x, y: panel.y, z: panel.z, text: panel.text,
      colorscale: "Viridis", cmin: low, cmax: high, showscale: false, connectgaps: false,
      hovertemplate: "%{x:.3g}, %{y:.3g}<br>%{text}<extra></extra>",
      lighting: { ambient: 0.75, diffuse: 0.5, specular: 0.05 },
    };
  }

  function turned(camera, way) {
    const { x, y, z } = camera.eye;
    const flat = Math.hypot(x, y), distance = Math.hypot(flat, z);
    const limit = Math.PI / 2 - 0.05;
    let along = Math.atan2(y, x), above = Math.atan2(z, flat);
    if (way === "left") along -= STEP;
    if (way === "right") along += STEP;
    if (way === "up") above = Math.min(above + STEP, limit);
    if (way === "down") above = Math.max(above - STEP, -limit);
    const eye = {
      x: distance * Math.cos(above) * Math.cos(along),
      y: distance * Math.cos(above) * Math.sin(along),
      z: distance * Math.sin(above),
    };
    return { ...START, center: camera.center, eye };
  }

  function begin(group) {
    const data = JSON.parse(group.querySelector("script").textContent);
    const plots = [...group.querySelectorAll(".plot")];
    let camera = START, waiting = false;

    function follow(leader) {
      if (waiting) return; // one frame takes the latest camera, however many events came
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        const wanted = JSON.stringify(camera);
        for (const plot of plots) {
          if (plot !== leader && JSON.stringify(plot.layout.scene.camera) !== wanted)
            Plotly.relayout(plot, { "scene.camera": JSON.parse(wanted) });
        }
      });
    }

    plots.forEach((plot, at) => {
      const options = { responsive: true, displaylogo: false, displayModeBar: false };
      Plotly.newPlot(plot, [trace(data, data.panels[at])], layout(data, START), options);
      const moved = (event) => {
        const seen = event["scene.camera"];
        if (!seen || JSON.stringify(seen) === JSON.stringify(camera)) return;
        camera = JSON.parse(JSON.stringify(seen));
        follow(plot);
      };
      plot.on("plotly_relayouting", moved);
      plot.on("plotly_relayout", moved);
    });
    for (const button of group.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        camera = button.dataset.turn === "reset" ? START : turned(camera, button.dataset.turn);
        follow(null);
      });
    }
    dark.addEventListener("change", () => {
      for (const plot of plots) Plotly.relayout(plot, layout(data, camera));
    });
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      begin(entry.target);
    }
  }, { rootMargin: "400px" });
  for (const group of document.querySelectorAll(".surfaces")) seen.observe(group);
})();
