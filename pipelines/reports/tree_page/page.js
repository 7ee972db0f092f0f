for (const stage of document.querySelectorAll("section[data-stage]")) {
  if (!stage.querySelector(".steps")) continue; // the tree is still growing
  const steps = JSON.parse(stage.querySelector(".steps").textContent);
  const slider = stage.querySelector(".slider");
  const input = slider.querySelector("input");
  const output = slider.querySelector("output");
  const rows = [...stage.querySelectorAll("[data-expert]")];

  function show() {
    const step = steps[input.value - 1];
    stage.style.setProperty("--now", step.at + "%");
    for (const row of rows) {
      const works = step.experts.includes(row.dataset.expert);
      row.classList.toggle("works", works);
      if (works) stage.style.setProperty("--now-hue", row.style.getPropertyValue("--hue"));
    }
    output.textContent =
      `step ${input.value} of ${steps.length}: σ = ${step.sigma}, expert ${step.experts.join(" and ")}`;
  }

  input.addEventListener("input", show);
  slider.hidden = false;
  stage.classList.add("live");
  show();
}
