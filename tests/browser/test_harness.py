"""A widget as small as can be, so that what fails elsewhere is not the browser's fault."""

COUNTER = '''
import anywidget, traitlets

class Counter(anywidget.AnyWidget):
    _esm = """export default { render({ model, el }) {
        const button = document.createElement("button");
        const show = () => button.textContent = `count ${model.get("value")}`;
        button.onclick = () => { model.set("value", model.get("value") + 1); model.save_changes(); };
        model.on("change:value", show); show(); el.append(button);
    } }"""
    value = traitlets.Int(0).tag(sync=True)

counter = Counter()
counter
'''


def test_a_click_reaches_python_and_python_the_page(lab):
    lab.open(COUNTER)
    lab.page.get_by_role("button", name="count 0").click()
    lab.wait_for("counter.value", 1)
    lab.run("counter.value = 7")
    lab.page.get_by_role("button", name="count 7").wait_for()
