"""Pictures in docs/ are made from diskq itself, and are those that it makes now."""

from __future__ import annotations

from picture import graph, layers, walk


def test_the_picture_of_the_layers_is_what_the_imports_make():
    """If not: python3 tools/dev.py picture layers."""
    assert layers.PICTURE.read_text() == layers.draw(graph.read())


def test_the_picture_shows_each_package_and_each_import_between_two():
    modules = graph.read()
    text = layers.draw(modules)
    for layer in layers.SHOWN:
        assert f">{'diskq/__init__.py' if layer == graph.TOP else f'{layer}/'}</text>" in text
    pairs = {
        (module.layer, modules[other].layer)
        for module in modules.values()
        for other in module.imports
    }
    lines = {(low, high) for low, high in pairs if low not in (high, "__main__")}
    assert text.count("<path d='M6") == len(lines)
    assert all(f"<title>{low} imports {high}: " in text for low, high in lines)


def test_the_way_of_a_message_begins_in_the_face_and_changes_files():
    ways = walk.walk()
    assert {verb: way[0] for verb, way in ways.items()} == {
        "put": "api/topic.py",
        "get": "api/consumer.py",
        "ack": "api/message.py",
    }
    assert all("storage/engine.py" in way for way in ways.values())
    assert walk.changes(["a", "a", "b", "a"]) == 2
