import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_operators_are_used_as_the_readme_says():
    (block,) = (
        b for b in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "topk_mask(" in b
    )
    names = {}
    exec(block, names)
    shapes = {
        "out": (4, 1, 784, 512),
        "weights": (4, 1, 784),
        "some": (4, 1, 196, 512),
        "curve": (2, 11, 784),
    }
    shapes |= {"mask": (4, 784), "kept": (4, 784, 512), "chosen": (4, 196, 512), "swapped": (2, 3, 224, 224)}
    assert {name: tuple(names[name].shape) for name in shapes} == shapes
