
// The notebook's transport: messages of the widget, each answered under its number.
function render({ model, el }) {
  const waiting = new Map();
  let count = 0;
  const receive = ({ id, reply }) => {
    waiting.get(id)?.(reply);
    waiting.delete(id);
  };
  model.on("msg:custom", receive);
  mount(el, (request) => new Promise((resolve) => {
    waiting.set(++count, resolve);
    model.send({ id: count, request });
  }));
  return () => model.off("msg:custom", receive);
}

export default { render };
