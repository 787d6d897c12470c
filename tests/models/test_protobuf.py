"""Messages taken apart and put together, against the `onnx` package."""

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from models.protobuf import bodies, fields, text, texts, whole_number, with_length, with_value


def message(proto):
    return memoryview(proto.SerializeToString())


@given(st.text(), st.integers(0, 2**63 - 1))
def test_what_is_put_together_is_read(name, number):
    written = b"".join([*with_length(1, name.encode()), with_value(3, number)])
    value = onnx.AttributeProto.FromString(written)
    assert (value.name, value.i) == (name, number)


@given(st.lists(st.binary(max_size=200)))
def test_a_message_in_parts_is_as_in_one(parts):
    """Whatever is joined, and when."""
    whole = b"".join(parts)
    assert b"".join(with_length(7, *parts)) == b"".join(with_length(7, whole))


@given(st.lists(st.text(max_size=200), max_size=5), st.text(max_size=5))
def test_strings_are_read(names, name):
    node = message(onnx.NodeProto(input=names, name=name))
    assert texts(node, 1) == names
    assert text(node, 1) == (names or [""])[0]
    assert text(node, 3) == name
    assert [bytes(body).decode() for body in bodies(node, 1)] == names


@given(st.integers(0, 2**63 - 1))
def test_whole_numbers_are_read(number):
    attribute = message(
        onnx.AttributeProto(name="x", f=1.5, i=number, type=onnx.AttributeProto.INT)
    )
    assert whole_number(attribute, 3) == number
    assert whole_number(attribute, 20) == 2
    assert whole_number(attribute, 4) == 0


def test_fields_lie_next_to_each_other():
    tensor = TensorProto(dims=[3], data_type=1, double_data=[1.5], name="x", raw_data=b"abc")
    whole = message(tensor)
    found = list(fields(whole))
    assert b"".join(field.whole for field in found) == bytes(whole)
    assert {field.number for field in found} == {1, 2, 8, 9, 10}


@pytest.mark.parametrize(
    "junk", [b"\x08", b"\x08" * 999, b"\xff" * 40, b"\x3a\x02\x3a", b"\x09abc", b"\x0b"]
)
def test_no_message(junk):
    with pytest.raises(ValueError, match="it is"):
        list(fields(memoryview(junk)))
