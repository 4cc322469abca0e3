// A slider of the static site shows one of the stored figures and puts the other sliders of its figure back.
document.addEventListener("input", ({ target }) => {
  const figure = target.closest("figure.strip");
  if (!figure) return;
  for (const slider of figure.querySelectorAll("input")) {
    if (slider !== target) slider.value = slider.defaultValue;
    const text = JSON.parse(slider.dataset.labels)[slider.value];
    slider.nextElementSibling.value = text;
    slider.setAttribute("aria-valuetext", text);
  }
  figure.querySelector("img").style.setProperty("--frame", Number(target.dataset.first) + Number(target.value));
});
