function render({ model, el }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "jupyter-widgets jupyter-button widget-button";
  const icon = document.createElement("i");
  icon.className = "fa fa-paste";
  button.append(icon, "Paste image");
  button.title = "Read the clipboard; or put the focus here and press Ctrl+V (Cmd+V on a Mac)";
  button.dataset.lmSuppressShortcuts = "true"; // or JupyterLab would paste a cell

  const refuse = (reason) => model.send({ reason });

  async function give(files) {
    const images = files.filter((file) => file.type.startsWith("image/"));
    if (!images.length) return refuse("there is no image in the clipboard");
    const bytes = images.reduce((sum, file) => sum + file.size, 0);
    const limit = model.get("limit");
    if (bytes > limit) return refuse(`${Math.round(bytes / 1e6)} MB were pasted, the limit is ${Math.round(limit / 1e6)} MB`);
    const buffers = await Promise.all(images.map((file) => file.arrayBuffer()));
    model.send({ names: images.map((file) => file.name || "pasted image") }, undefined, buffers);
  }

  button.addEventListener("paste", (event) => {
    event.preventDefault();
    event.stopPropagation();
    give([...event.clipboardData.files]);
  });

  button.addEventListener("click", async () => {
    button.focus();
    try {
      const files = [];
      for (const item of await navigator.clipboard.read()) {
        const type = item.types.find((one) => one.startsWith("image/"));
        if (type) files.push(new File([await item.getType(type)], "pasted image", { type }));
      }
      await give(files);
    } catch (error) {
      refuse(`the browser does not let this page read the clipboard (${error.name}); press Ctrl+V, or Cmd+V on a Mac, instead`);
    }
  });

  el.replaceChildren(button);
}

export default { render };
