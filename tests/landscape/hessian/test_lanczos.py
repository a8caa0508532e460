"""Eigenpairs, quadrature and traces against matrices whose spectrum is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from landscape.hessian import lanczos, quadrature, trace

WIDE = torch.float64


def matrix(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """(blocks, n, n) with eigenvalues (blocks, n) in random directions."""
    generator = torch.Generator().manual_seed(seed)
    size = eigenvalues.shape[1]
    drawn = torch.randn(len(eigenvalues), size, size, generator=generator, dtype=WIDE)
    basis = torch.linalg.qr(drawn)[0]
    return basis @ torch.diag_embed(eigenvalues.to(WIDE)) @ basis.mT


def product(dense: Tensor) -> lanczos.Multiply:
    def multiply(vectors: Tensor) -> Tensor:
        return (dense.to(vectors) @ vectors[:, :, None])[:, :, 0]

    return multiply


def start(blocks: int, size: int, dtype: torch.dtype = WIDE, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return lanczos.gaussian(torch.empty(blocks, size, dtype=dtype), generator)


def solve(eigenvalues: Tensor, count: int, *, dtype: torch.dtype = WIDE, **options: object):
    dense = matrix(eigenvalues)
    return lanczos.eigenpairs(
        product(dense),
        start(*eigenvalues.shape, dtype=dtype),
        count,
        generator=torch.Generator().manual_seed(2),
        **options,
    )


def spectrum(size: int = 60) -> Tensor:
    """Indefinite, a few large outliers and a bulk, as of a network."""
    bulk = torch.linspace(-1, 1, size - 5, dtype=WIDE)
    return torch.cat([torch.tensor([40.0, 15.0, 9.0, -12.0, -4.0], dtype=WIDE), bulk])[None]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("magnitude", [40.0, 15.0, -12.0]),
        ("largest", [40.0, 15.0, 9.0]),
        ("smallest", [-12.0, -4.0, -1.0]),
    ],
)
def test_each_end_of_a_spectrum_is_found(which: lanczos.Which, expected: list[float]) -> None:
    found = solve(spectrum(), 3, which=which, tol=1e-8)
    # An eigenvalue is off by at most the residual, |Av - λv| = tol * |λ|.
    torch.testing.assert_close(
        found.values[0], torch.tensor(expected, dtype=WIDE), rtol=1e-7, atol=0
    )
    assert found.converged.all()


def test_residuals_are_those_of_the_matrix_itself() -> None:
    values = spectrum()
    dense = matrix(values)
    found = solve(values, 4, tol=1e-3)
    for value, vector, residual in zip(
        found.values[0], found.vectors[0], found.residuals[0], strict=True
    ):
        true = (dense[0] @ vector - value * vector).norm() / value.abs()
        # the same number up to rounding of products of size 40
        assert abs(true - residual) < 1e-12
        assert true <= 1e-3


def test_eigenvectors_have_norm_one_and_are_orthogonal() -> None:
    vectors = solve(spectrum(), 4, tol=1e-6).vectors[0]
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(4, dtype=WIDE), rtol=0, atol=1e-10)


def test_too_few_products_are_reported_as_not_converged() -> None:
    found = solve(spectrum(), 5, tol=1e-3, max_products=3)
    assert found.products <= 3
    assert not found.converged.all()
    assert found.values.isnan().any()
    assert not found.converged[found.values.isnan()].any()


@pytest.mark.parametrize("limit", range(1, 40, 3))
def test_no_more_products_are_made_than_allowed(limit: int) -> None:
    calls = []
    dense = matrix(spectrum())

    def counting(vectors: Tensor) -> Tensor:
        calls.append(1)
        return product(dense)(vectors)

    found = lanczos.eigenpairs(
        counting, start(1, 60), 4, tol=1e-12, max_products=limit, generator=torch.Generator()
    )
    assert found.products == len(calls) <= limit


def test_a_hundred_float32_steps_bring_no_ghosts() -> None:
    """Without reorthogonalisation all large values are copies of the first."""
    eigenvalues = torch.cat([torch.tensor([1e3, 100.0]), torch.linspace(0, 1, 298)])[None]
    nodes, weights = quadrature.quadrature(
        product(matrix(eigenvalues)), start(1, 300, torch.float32), 100, torch.Generator()
    )
    assert (nodes > 500).sum() == 1
    assert ((nodes > 50) & (nodes < 500)).sum() == 1
    # float32 products
    torch.testing.assert_close(nodes[0, -1], torch.tensor(1e3, dtype=WIDE), rtol=1e-5, atol=0)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0, dtype=WIDE), rtol=0, atol=1e-10)


@pytest.mark.parametrize("tol", [1e-2, 1e-5])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_no_product_is_made_after_all_residuals_are_small_enough(count: int, tol: float) -> None:
    found = solve(spectrum(), count, tol=tol)
    assert found.converged.all()
    assert not solve(spectrum(), count, tol=tol, max_products=found.products - 1).converged.all()


def test_restarts_reach_what_one_basis_cannot() -> None:
    eigenvalues = torch.linspace(1, 2, 400, dtype=WIDE)[None]
    found = solve(eigenvalues, 2, tol=1e-6, max_products=2000)
    assert found.products > 2 * 20, "it should have restarted"
    assert found.converged.all()
    torch.testing.assert_close(found.values[0], eigenvalues[0].flip(0)[:2], rtol=2e-6, atol=0)


def test_every_block_has_its_own_spectrum() -> None:
    eigenvalues = torch.cat([spectrum(), -2 * spectrum(), 1e-6 * spectrum().flip(1)])
    together = solve(eigenvalues, 2, tol=1e-9)
    expected = torch.tensor([[40, 15], [-80, -30], [4e-5, 1.5e-5]], dtype=WIDE)
    torch.testing.assert_close(together.values, expected, rtol=1e-8, atol=0)


def test_a_matrix_of_low_rank_exhausts_its_krylov_space_without_harm() -> None:
    eigenvalues = torch.zeros(2, 50, dtype=WIDE)
    eigenvalues[:, :3] = torch.tensor([5.0, 3.0, 1.0])
    for count in (1, 3):
        found = solve(eigenvalues, count, tol=1e-8, max_products=60)
        torch.testing.assert_close(found.values, eigenvalues[:, :count], rtol=1e-8, atol=0)
        assert found.converged.all()


def test_a_basis_stays_orthogonal_in_the_one_block_whose_krylov_space_is_exhausted() -> None:
    low_rank = torch.zeros(1, 60, dtype=WIDE)
    low_rank[:, :3] = torch.tensor([5.0, 3.0, 1.0])
    dense = matrix(torch.cat([low_rank, spectrum(), 0 * low_rank]))
    basis = lanczos.Basis(start(3, 60), 20, torch.Generator().manual_seed(2))
    for _ in range(20):
        basis.extend(product(dense))
    vectors = basis.vectors[:, :20]
    # rounding, of which twice orthogonalised vectors have some epsilons
    torch.testing.assert_close(
        vectors @ vectors.mT, torch.eye(20, dtype=WIDE).expand(3, -1, -1), rtol=0, atol=1e-13
    )
    torch.testing.assert_close(basis.matrix, vectors @ dense @ vectors.mT, rtol=0, atol=1e-11)
    torch.testing.assert_close(basis.images, vectors @ dense, rtol=0, atol=1e-12)
    # three eigenvalues and zero exhaust their space with the fourth product, zeros with the first
    assert basis.longest.tolist() == [4, 0, 1]
    assert basis.length[1] == 20
    assert basis.remainder[2] == 0 < basis.remainder[1]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_block_whose_space_is_exhausted_does_not_wait_for_that_of_others(count: int) -> None:
    low_rank = torch.zeros(1, 60, dtype=WIDE)
    low_rank[:, :3] = torch.tensor([5.0, 3.0, 1.0])
    options = {"tol": 1e-9, "max_products": 60}
    alone = [solve(one, count, **options).products for one in (low_rank, spectrum())]
    together = solve(torch.cat([low_rank, spectrum()]), count, **options)
    # another start vector in the second block, and a few products for its own accuracy
    assert max(alone) <= together.products <= max(alone) + 3


def repeated() -> Tensor:
    """Two spectra of low rank, each with eigenvalues of two or three vectors."""
    eigenvalues = torch.zeros(2, 80, dtype=WIDE)
    eigenvalues[0, :6] = torch.tensor([5.0, 5.0, 5.0, 3.0, 1.0, 1.0])
    eigenvalues[1, :6] = torch.tensor([7.0, 4.0, 4.0, -3.0, -3.0, 2.0])
    return eigenvalues


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_an_exhausted_space_is_left_for_further_vectors_of_its_eigenvalues(count: int) -> None:
    """A tight tolerance, so that nothing is believed before the space is exhausted."""
    eigenvalues = repeated()
    found = solve(eigenvalues, count, tol=1e-9, max_products=60)
    torch.testing.assert_close(found.values, eigenvalues[:, :count], rtol=1e-8, atol=0)
    assert found.products < 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bulk", [0.0, 0.5])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_looking_again_finds_every_vector_of_an_eigenvalue(
    count: int, bulk: float, dtype: torch.dtype
) -> None:
    eigenvalues = repeated()
    eigenvalues[:, 6:] = bulk * torch.linspace(-1, 1, 74)
    dense, generator = product(matrix(eigenvalues)), torch.Generator().manual_seed(2)
    first = lanczos.eigenpairs(
        dense, start(2, 80, dtype), count, tol=1e-3, max_products=300, generator=generator
    )
    found = lanczos.multiples(
        dense, first, which="magnitude", tol=1e-3, max_products=300, generator=generator
    )
    # of values that are apart, an error of the square of the residual's
    torch.testing.assert_close(found.values, eigenvalues[:, :count], rtol=1e-4, atol=0)
    assert found.converged.all()
    assert found.products > first.products
    gram = (found.vectors @ found.vectors.mT).double()
    torch.testing.assert_close(
        gram, torch.eye(count, dtype=WIDE).expand(2, -1, -1), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize(
    ("which", "expected"),
    [("largest", [[5.0, 5.0], [4.0, 2.0]]), ("smallest", [[-6.0, -6.0], [-7.0, -3.0]])],
)
def test_looking_again_finds_every_vector_at_its_own_end_in_the_one_block_that_has_more(
    which: lanczos.Which, expected: list[list[float]]
) -> None:
    known = torch.tensor([[5.0, 5, 5, 3, -6, -6, -2, -1], [4.0, 2, 1.5, 1, -7, -3, -2, -1]])
    bulk = 0.5 * torch.linspace(-1, 1, 72).expand(2, -1)
    dense = product(matrix(torch.cat([known, bulk], dim=1).double()))
    generator = torch.Generator().manual_seed(2)
    options = {"which": which, "tol": 1e-3, "max_products": 300, "generator": generator}
    first = lanczos.eigenpairs(dense, start(2, 80), 2, **options)
    assert first.values[0, 1].abs() < 4, "one start vector finds one of them"
    found = lanczos.multiples(dense, first, **options)
    torch.testing.assert_close(found.values, torch.tensor(expected, dtype=WIDE), rtol=1e-4, atol=0)
    assert found.converged.all()


@pytest.mark.parametrize("which", ["magnitude", "largest", "smallest"])
@pytest.mark.parametrize("count", [1, 5, 10, 11, 12])
@pytest.mark.parametrize("values", ["line", "negative", "rank one", "zero"])
def test_looking_again_where_nothing_is_left_changes_nothing(
    which: lanczos.Which, count: int, values: str
) -> None:
    spectra = {"line": torch.arange(1.0, 13), "negative": -torch.arange(1.0, 13)}
    spectra |= {"zero": torch.zeros(12), "rank one": torch.eye(12)[0]}
    eigenvalues = spectra[values][None].double()
    dense, generator = product(matrix(eigenvalues)), torch.Generator().manual_seed(2)
    first = lanczos.eigenpairs(dense, start(1, 12), count, which=which, generator=generator)
    found = lanczos.multiples(
        dense, first, which=which, tol=1e-3, max_products=200, generator=generator
    )
    keys = {"magnitude": -eigenvalues.abs(), "largest": -eigenvalues, "smallest": eigenvalues}
    wanted = eigenvalues.gather(1, keys[which].argsort(dim=1, stable=True))[:, :count]
    torch.testing.assert_close(found.values, wanted, rtol=1e-9, atol=1e-12)
    assert found.products < 100, "values of rounding may change places; no more"


def test_looking_again_makes_no_more_products_than_allowed() -> None:
    eigenvalues, generator = repeated(), torch.Generator().manual_seed(2)
    dense, calls = product(matrix(eigenvalues)), []

    def counted(vectors: Tensor) -> Tensor:
        calls.append(1)
        return dense(vectors)

    first = lanczos.eigenpairs(counted, start(2, 80), 3, max_products=6, generator=generator)
    found = lanczos.multiples(
        counted, first, which="magnitude", tol=1e-3, max_products=9, generator=generator
    )
    assert len(calls) == found.products <= 9


def test_a_small_matrix_is_multiplied_out_with_all_its_multiple_eigenvalues() -> None:
    eigenvalues = torch.tensor([[3.0, 3.0, 3.0, -2.0, -2.0, *[0.5] * 10]], dtype=WIDE)
    found = solve(eigenvalues, 5, tol=1e-2)
    torch.testing.assert_close(found.values, eigenvalues[:, :5], rtol=1e-9, atol=0)
    assert found.products == 15


def test_float32_goes_on_until_rounding_lets_the_residual_fall_no_further() -> None:
    """Values a thousandth of the largest: at 1e-3 their residual is hardly above rounding."""
    eigenvalues = torch.cat(
        [torch.tensor([3000.0, 100.0, 10.0, 6.0, 4.0]), torch.linspace(-1, 1, 195)]
    )[None]
    found = solve(eigenvalues, 4, dtype=torch.float32, tol=1e-3)
    assert found.converged.all()
    torch.testing.assert_close(found.values.float(), eigenvalues[:, :4], rtol=1e-3, atol=0)
    stuck = solve(eigenvalues, 4, dtype=torch.float32, tol=1e-7, max_products=150)
    assert not stuck.converged.all()
    assert stuck.products < 80, "more products would not help"
    # the best that float32 has: its epsilon times the largest eigenvalue, within a factor of ten
    assert (stuck.residuals * stuck.values < 10 * 1.2e-7 * 3000).all()


def test_so_many_products_follow_the_best_residual_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known, products = torch.tensor([3000.0, 100.0, 10.0, 6.0, 4.0]), []
    for patience in (1, 3, 10):
        monkeypatch.setattr(lanczos, "PATIENCE", patience)
        eigenvalues = torch.cat([known, torch.linspace(-1, 1, 195)])[None]
        stuck = solve(eigenvalues, 4, dtype=torch.float32, tol=1e-7, max_products=150)
        products.append(stuck.products - patience)
    assert products[0] == products[1] == products[2]


def test_an_eigenvalue_of_zero_is_left_alone_when_only_rounding_is_missing() -> None:
    eigenvalues = torch.zeros(2, 50, dtype=WIDE)
    eigenvalues[:, :3] = torch.tensor([5.0, 3.0, 1.0])
    found = solve(eigenvalues, 2, which="smallest", tol=1e-6, max_products=200)
    assert found.products < 20
    # zero to rounding, and its residual is what it is
    assert found.values.abs().max() < 1e-13


def test_a_block_whose_products_are_not_finite_is_nan_and_harms_no_other() -> None:
    dense = matrix(torch.cat([spectrum(), spectrum()]))
    dense[1, 3, 3] = math.inf
    found = lanczos.eigenpairs(
        product(dense), start(2, 60), 2, tol=1e-6, max_products=40, generator=torch.Generator()
    )
    torch.testing.assert_close(
        found.values[0], torch.tensor([40.0, 15.0], dtype=WIDE), rtol=1e-5, atol=0
    )
    assert found.values[1].isnan().all()
    assert not found.converged[1].any()
    nodes, _ = quadrature.quadrature(product(dense), start(2, 60), 5, torch.Generator())
    assert nodes[0].isfinite().all()
    assert nodes[1].isnan().all()


def test_a_zero_matrix_has_zero_eigenvalues() -> None:
    found = solve(torch.zeros(1, 10, dtype=WIDE), 2)
    assert (found.values == 0).all()
    assert found.converged.all()


def test_the_whole_spectrum_can_be_asked_for() -> None:
    eigenvalues = torch.tensor([[3.0, -2.0, 1.0, 0.5]], dtype=WIDE)
    found = solve(eigenvalues, 4, tol=1e-10)
    torch.testing.assert_close(found.values, eigenvalues, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("count", "products"), [(0, 9), (11, 99), (1, 0)])
def test_impossible_wishes_are_refused(count: int, products: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        solve(torch.ones(1, 10, dtype=WIDE), count, max_products=products)


def test_quadrature_is_exact_for_polynomials_of_low_degree() -> None:
    values = spectrum()
    dense, vector = matrix(values), start(1, 60)
    nodes, weights = quadrature.quadrature(product(dense), vector, 6, torch.Generator())
    unit = (vector / vector.norm())[0]
    for degree in range(12):
        exact = unit @ torch.linalg.matrix_power(dense[0], degree) @ unit
        found = (weights * nodes**degree).sum()
        # relative to 40^degree, the size of the terms
        assert abs(exact - found) < 1e-11 * 40.0**degree, degree


def test_the_mean_density_has_the_moments_of_the_spectrum() -> None:
    values = spectrum(200)
    dense = matrix(values)
    draws = [
        quadrature.quadrature(product(dense), start(1, 200, seed=seed), 20, torch.Generator())
        for seed in range(200)
    ]
    for degree in (1, 2, 3):
        found = torch.stack([(w * n**degree).sum() for n, w in draws])
        exact = (values**degree).mean()
        assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(len(found))


def test_trace_and_norm_are_within_their_errors() -> None:
    values = spectrum(300)
    dense = matrix(values)
    hits = 0
    for seed in range(20):
        found = trace.traces(product(dense), start(1, 300), 60, torch.Generator().manual_seed(seed))
        hits += abs(found.trace - float(values.sum())) < 4 * found.trace_stderr
        assert abs(found.squared_norm - float((values**2).sum())) < 5 * found.squared_norm_stderr
    # 4 of its own errors, of which there are 19 degrees of freedom: one miss in 20 is rare already
    assert hits >= 19


def test_the_errors_of_trace_and_norm_are_their_spread() -> None:
    values = spectrum(300)
    dense = matrix(values)
    found = [
        trace.traces(product(dense), start(1, 300), 60, torch.Generator().manual_seed(seed))
        for seed in range(60)
    ]
    for name in ("trace", "squared_norm"):
        spread = torch.tensor([getattr(one, name) for one in found]).std()
        error = torch.tensor([getattr(one, f"{name}_stderr") for one in found]).mean()
        # 60 draws tell a standard deviation to a tenth; the mean of its estimates is a little low
        assert 0.75 < float(error / spread) < 1.3, name


def test_a_sketch_of_full_rank_leaves_nothing_to_guess() -> None:
    values = torch.tensor([[3.0, -2.0, 1.0]], dtype=WIDE)
    found = trace.traces(product(matrix(values)), start(1, 3), 12, torch.Generator())
    assert found.trace == pytest.approx(2, rel=1e-12)
    assert found.squared_norm == pytest.approx(14, rel=1e-12)
    assert found.trace_stderr == found.squared_norm_stderr == 0


def test_trace_beats_plain_guessing_on_a_spectrum_with_outliers() -> None:
    values = spectrum(300)
    dense, errors, plain = matrix(values), [], []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        found = trace.traces(product(dense), start(1, 300), 60, generator)
        errors.append(abs(found.trace - float(values.sum())))
        signs = torch.randint(0, 2, (60, 300), generator=generator).to(WIDE) * 2 - 1
        plain.append(abs(float((signs * (signs @ dense[0])).sum(1).mean() - values.sum())))
    assert sum(errors) < 0.5 * sum(plain)


def test_the_same_generator_gives_the_same_result() -> None:
    a, b = (solve(spectrum(), 3, tol=1e-5) for _ in range(2))
    assert torch.equal(a.vectors, b.vectors)
    assert torch.equal(a.residuals, b.residuals)


@pytest.mark.parametrize("products", [6, 7, 8, 20])
def test_a_trace_makes_the_products_it_was_given_and_is_exact_where_a_third_spans_the_range(
    products: int,
) -> None:
    values = torch.zeros(1, 50, dtype=WIDE)
    values[0, :2] = torch.tensor([5.0, -3.0])
    dense, calls = product(matrix(values)), []

    def counted(vectors: Tensor) -> Tensor:
        calls.append(len(vectors))
        return dense(vectors)

    found = trace.traces(counted, start(1, 50), products, torch.Generator().manual_seed(0))
    assert calls == [1] * products
    assert found.trace == pytest.approx(2, rel=1e-9)
    assert found.squared_norm == pytest.approx(34, rel=1e-9)
    assert max(found.trace_stderr, found.squared_norm_stderr) < 1e-9


def test_a_trace_of_fewer_than_six_products_is_refused() -> None:
    with pytest.raises(ValueError, match="trace: 5 products; expected at least 6"):
        trace.traces(product(torch.eye(9)), start(1, 9), 5, torch.Generator())


def test_quadrature_makes_a_product_a_step_up_to_the_rows() -> None:
    eigenvalues, calls = torch.tensor([[3.0, -2.0, 1.0, 0.5]], dtype=WIDE), []

    def counted(vectors: Tensor) -> Tensor:
        calls.append(1)
        return product(matrix(eigenvalues))(vectors)

    for steps in (1, 4):
        nodes, weights = quadrature.quadrature(counted, start(1, 4), steps, torch.Generator())
        assert nodes.shape == weights.shape == (1, steps)
    assert len(calls) == 5
    torch.testing.assert_close(nodes, eigenvalues.sort().values, rtol=1e-9, atol=0)
    for steps in (0, 5):
        with pytest.raises(ValueError, match=f"steps={steps}; expected 1 to 4"):
            quadrature.quadrature(counted, start(1, 4), steps, torch.Generator())
