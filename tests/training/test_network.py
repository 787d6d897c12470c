import pytest
import torch

from training.config import Student
from training.explainer.network import ExplainerNetwork, NetworkConfig, Pieces, select_states

STATES = 12  # width of the states read
VOCABULARY = 50


def make(reads="all", **changes):
    torch.manual_seed(0)
    values = {"width": 16, "heads": 4, "blocks": 2, "scale": 0.75, **changes}
    config = NetworkConfig(
        classes=3, input_width=STATES, vocabulary=VOCABULARY, positions=40, reads=reads, **values
    )
    return ExplainerNetwork(config).eval()


def inputs(reads, rows, tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if reads == "own":
        return torch.randint(0, VOCABULARY, (rows, tokens), generator=generator)
    return torch.randn(rows, tokens, STATES, generator=generator)


def answer(network, states, mask, target):
    with torch.no_grad():
        return network(states, mask, torch.tensor(target))


def close(found, expected):
    """Equal but for the order of floating-point sums."""
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=0)


def cut(pieces, rows, tokens):
    return Pieces(*(part[rows, tokens] for part in pieces))


READS = pytest.mark.parametrize("reads", ["all", "layers", "last", "own"])


@READS
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 38)])
def test_shapes(reads, shape):
    found = answer(
        make(reads), inputs(reads, *shape), torch.ones(shape, dtype=torch.int64), [0] * shape[0]
    )
    assert (found.weights.shape, found.ranking.shape) == (shape, shape)
    assert found.label_logits.shape == (*shape, 5)
    assert all(part.isfinite().all() for part in found)


@READS
def test_answers_differ_between_pieces_and_inputs(reads):
    """Else every test of equality below would pass for a constant network."""
    network, mask = make(reads), torch.ones(1, 7, dtype=torch.int64)
    found = answer(network, inputs(reads, 1, 7), mask, [1]).weights
    other = answer(network, inputs(reads, 1, 7, seed=1), mask, [1]).weights
    assert found.std() > 0.01
    assert (found - other).abs().min() > 1e-4


@READS
def test_padding_changes_no_answer(reads):
    network, states = make(reads), inputs(reads, 2, 9)
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[:, 6:] = 0
    short = answer(network, states[:, :6], mask[:, :6], [0, 2])
    close(cut(answer(network, states, mask, [0, 2]), slice(None), slice(6)), short)


@READS
def test_a_row_alone_is_the_row_in_a_batch(reads):
    network, states = make(reads), inputs(reads, 5, 8)
    mask = torch.ones(5, 8, dtype=torch.int64)
    for row, tokens in enumerate((8, 3, 1, 5, 8)):
        mask[row, tokens:] = 0
    together = answer(network, states, mask, [0, 1, 2, 0, 1])
    for row, target in enumerate((0, 1, 2, 0, 1)):
        tokens = int(mask[row].sum())
        alone = answer(
            network, states[row : row + 1, :tokens], mask[row : row + 1, :tokens], [target]
        )
        close(cut(together, slice(row, row + 1), slice(tokens)), alone)


@READS
def test_what_lies_outside_the_mask_does_not_matter(reads):
    """In the middle of a row too, where no cut could hide it."""
    network, states = make(reads), inputs(reads, 1, 8)
    mask = torch.tensor([[1, 1, 0, 1, 0, 1, 1, 1]])
    changed = torch.where(
        (mask == 0).reshape(1, 8, *[1] * (states.ndim - 2)), inputs(reads, 1, 8, seed=5), states
    )
    assert not torch.equal(changed, states)
    inside = mask[0].nonzero()[:, 0]
    before, after = (answer(network, given, mask, [1]) for given in (states, changed))
    close(cut(after, slice(None), inside), cut(before, slice(None), inside))


@READS
@pytest.mark.parametrize("blocks", [0, 1])
def test_the_target_changes_the_answer(reads, blocks):
    network, states = make(reads, blocks=blocks), inputs(reads, 1, 6)
    mask = torch.ones(1, 6, dtype=torch.int64)
    found = [answer(network, states, mask, [target]).weights for target in range(3)]
    assert (found[0] - found[1]).abs().max() > 1e-4
    assert (found[1] - found[2]).abs().max() > 1e-4


def test_without_a_block_a_long_text_hears_of_the_target_as_a_short_one_does():
    """All pieces alike, so that length is all that differs."""
    network, piece = make("all", blocks=0), inputs("all", 1, 1)
    effects = []
    for tokens in (2, 38):
        states, mask = piece.expand(1, tokens, STATES), torch.ones(1, tokens, dtype=torch.int64)
        one, other = (answer(network, states, mask, [target]).weights[0, 0] for target in (0, 1))
        effects.append(float(one - other))
    assert abs(effects[0]) > 1e-3
    assert effects[1] == pytest.approx(effects[0], rel=1e-3)


@READS
@pytest.mark.parametrize("blocks", [0, 1])
def test_a_row_without_tokens_is_a_number(reads, blocks):
    """A tokenizer may drop all of a text and add nothing."""
    mask = torch.zeros(1, 3, dtype=torch.int64)
    found = answer(make(reads, blocks=blocks), inputs(reads, 1, 3), mask, [0])
    assert all(part.isfinite().all() for part in found)


def test_two_tokens_of_the_label_stand_before_the_pieces():
    """The first block sees them unmasked; the paper's places, at both ends, come to the same."""
    network, states = make("all", blocks=1), inputs("all", 1, 4)
    seen: list[tuple] = []
    network.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given))
    answer(network, states, torch.tensor([[1, 1, 1, 0]]), [2])
    [(x, bias)] = seen
    assert x.shape == (1, 6, 16)
    for place, end in enumerate(network.ends.weight):
        assert torch.equal(x[0, place], network.label.weight[2] + end)
    assert (bias[0, 0, 0] == 0).tolist() == [True, True, True, True, True, False]


def test_own_embeddings_know_their_neighbours_and_states_do_not_need_to():
    mask = torch.ones(1, 6, dtype=torch.int64)
    one, other = (torch.tensor([[*ids, 1, 2, 3, 4]]) for ids in ((7, 8), (8, 7)))
    network = make("own")
    with torch.no_grad():
        network.tokens.weight.mul_(50)  # as large as trained ones
    own = [answer(network, ids, mask, [0]).weights[0] for ids in (one, other)]
    assert (own[0][3] - own[1][3]).abs() > 1e-4, "the order of the two words before it"
    same = inputs("all", 1, 1).expand(1, 3, STATES)
    read = answer(make("all"), same, mask[:, :3], [0]).weights[0]
    torch.testing.assert_close(read, read[:1].expand(3), atol=2e-6, rtol=0)


def test_places_that_no_text_has_trained_are_like_any_other():
    """A teacher explains chunks, and a student of its own embeddings whole texts."""
    network = make("own", blocks=0)
    ids = torch.tensor([[1, 2, 3, 4, 5] * 6])
    with torch.no_grad():
        network.tokens.weight.mul_(50)
        embedded = network._embed(ids, torch.ones_like(ids))[0]
    torch.testing.assert_close(embedded[25:28], embedded[5:8])


def test_scale_is_the_unit_of_the_regression_head_only():
    states, mask = inputs("all", 1, 5), torch.ones(1, 5, dtype=torch.int64)
    one, three = (answer(make(scale=scale), states, mask, [0]) for scale in (1.0, 3.0))
    torch.testing.assert_close(three.weights, 3 * one.weights)
    assert torch.equal(three.ranking, one.ranking)
    assert torch.equal(three.label_logits, one.label_logits)


def test_dropout_is_for_training_only():
    network = make(dropout=0.5)
    states, mask = inputs("all", 1, 5), torch.ones(1, 5, dtype=torch.int64)
    first, second = (answer(network, states, mask, [0]).weights for _ in range(2))
    assert torch.equal(first, second)
    network.train()
    first, second = (answer(network, states, mask, [0]).weights for _ in range(2))
    assert not torch.equal(first, second)


@pytest.fixture
def pieces():
    chances = torch.tensor([[[0.1, 0.2, 0.4, 0.2, 0.1], [0.0625, 0.0625, 0.125, 0.25, 0.5]]])
    return Pieces(torch.tensor([[0.5, -3.0]]), torch.tensor([[7.0, 8.0]]), chances.log())


@pytest.mark.parametrize(
    ("decode", "expected"),
    [
        ("regression", [0.5, -3.0]),
        ("ranking", [7.0, 8.0]),
        ("labelling", [0.0, -2 / 16 - 1 / 16 + 1 / 4 + 2 / 2]),  # expected value over -2 … 2
    ],
)
def test_decoding_by_hand(decode, expected, pieces):
    weights, chances = make(decode=decode).decode(pieces)
    torch.testing.assert_close(weights, torch.tensor([expected]), atol=1e-6, rtol=0)
    torch.testing.assert_close(chances, pieces.label_logits.exp())
    asked, _ = make().decode(pieces, decode)
    assert torch.equal(asked, weights)


@pytest.mark.parametrize("decode", ["regression", "ranking", "labelling"])
def test_unread_parameters_are_those_that_change_nothing(decode):
    network = make(decode=decode)
    states, mask = inputs("all", 1, 5), torch.ones(1, 5, dtype=torch.int64)
    before = network.decode(answer(network, states, mask, [1]))
    unread = network.unread_parameters()
    assert unread
    for name, parameter in network.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
        after = network.decode(answer(network, states, mask, [1]))
        same = all(torch.equal(*pair) for pair in zip(before, after, strict=True))
        assert same == (name in unread), name
        with torch.no_grad():
            parameter.copy_(kept)


def test_states_of_all_layers_or_the_last(black_box):
    ids = torch.tensor([[2, 8, 9, 3]])
    states = black_box.hidden_states(ids, torch.ones_like(ids))
    assert len(states) == black_box.model.config.num_hidden_layers + 1
    together = select_states(states, Student())
    assert together.shape == (1, 4, 32 * 3)
    assert torch.equal(together[..., 32:64], states[1])
    assert torch.equal(select_states(states, Student(reads="last")), states[2])
    some = select_states(states, Student(reads="layers", layers=(0, 2)))
    assert torch.equal(some, torch.cat([states[0], states[2]], dim=-1))
    with pytest.raises(ValueError, match="layers: 3: the black box has states 0 to 2"):
        select_states(states, Student(reads="layers", layers=(0, 3)))


@READS
def test_the_shape_follows_from_the_black_box(reads, black_box, make_network):
    config = make_network(black_box, reads).config
    assert (config.classes, config.positions) == (2, 512)
    assert config.input_width == {"all": 96, "layers": 64, "last": 32, "own": 0}[reads]
    assert NetworkConfig.from_dict(config.to_dict()) == config
