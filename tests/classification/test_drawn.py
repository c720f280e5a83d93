"""The source "glyphs": characters in the fonts of Matplotlib, as classes."""

import numpy as np
import pytest

from steering.errors import SteeringError
from steering_tasks.classification import ClassificationOptions, ClassificationTask
from steering_tasks.classification.drawn import VISIBLE, glyphs
from steering_tasks.classification.options import ClassificationData
from steering_tasks.glyphs import FONTS, load_glyphs


def test_every_drawing_of_a_character_is_in_one_of_the_parts():
    wanted = load_glyphs()
    drawn = wanted.codepoints[wanted.character]
    parts = glyphs({"characters": "zA%"})  # not in the order of their numbers
    for number, character in enumerate("zA%"):
        own = [part.images[part.labels == number] for part in parts]
        assert sum(map(len, own)) == len(FONTS)
        every = wanted.images[drawn == ord(character)]
        both = np.concatenate(own)[..., 0]
        assert sorted(x.tobytes() for x in both) == sorted(x.tobytes() for x in every)
    assert [part.classes for part in parts] == [["z", "A", "%"]] * 2


def test_a_third_is_the_test_part_and_94_characters_are_the_default():
    train, test = glyphs({})
    assert len(VISIBLE) == len(train.classes) == 94
    assert len(train) + len(test) == 94 * 16
    assert 0.29 < len(test) / (94 * 16) < 0.37
    assert {*train.labels.tolist()} == {*range(94)}
    task = ClassificationTask(ClassificationOptions(data=ClassificationData(source="glyphs")))
    assert task.part.source.fingerprint() == train.fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"letters": "ab"}, "unexpected keyword argument 'letters'"),
        ({"characters": 12}, "expected a text of at least two different characters, got 12"),
        ({"characters": "aa"}, "at least two different"),
        ({"characters": "aba"}, "one of them stands there twice"),
        ({"characters": "a\ue000"}, "no font draws"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(SteeringError, match=message):
        glyphs(options)
