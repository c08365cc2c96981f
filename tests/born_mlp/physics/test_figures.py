import numpy as np

from born_mlp.physics import figures


def test_errors_follow_the_shallowness():
    axes = figures.born_convergence(strengths=(0.2, 0.7), orders=8).axes[0]
    dots, lines = axes.lines[0::2], axes.lines[1::2]
    assert len(dots) == 2
    for computed, power in zip(dots, lines, strict=True):
        np.testing.assert_allclose(computed.get_ydata(), power.get_ydata(), rtol=0.3)


def test_the_exact_curve_has_its_pole_at_the_unitary_limit():
    exact, *approximations = figures.unitary_limit(orders=(1, 2)).axes[0].lines[:3]
    strength, a0 = exact.get_xdata(), exact.get_ydata()
    jump = np.flatnonzero((a0[:-2] < -10) & (a0[2:] > 10))
    assert abs(strength[jump + 1] - np.pi**2 / 4) < 0.02
    first = approximations[0]
    np.testing.assert_allclose(first.get_ydata(), -first.get_xdata() / 3, atol=1e-14)


def test_the_continued_line_cuts_the_axis_at_the_scattering_length():
    for axes in figures.wave_functions().axes[3:]:
        wave, line = axes.lines[0], axes.lines[1]
        outside = wave.get_xdata() > 1
        np.testing.assert_allclose(
            wave.get_ydata()[outside], line.get_ydata()[outside], rtol=1e-9, atol=1e-12
        )


def test_every_figure_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["figures", "--out", str(tmp_path)])
    figures.main()
    assert {path.stem for path in tmp_path.glob("*.png")} == set(figures.FIGURES)
    assert {path.stem for path in tmp_path.glob("*.svg")} == set(figures.FIGURES)
