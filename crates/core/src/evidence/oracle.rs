//! Values that the reference implementation of confidence sequences (confseq 0.0.11) gives, and the formulas by which we
//! get them too: Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence
//! sequences" (2021), and Howard and Ramdas, "Sequential estimation of quantiles" (2022).

use super::imbalance::ln_beta;
use super::means::normal_mixture_bound;

/// Two-sided beta-binomial mixture for values in `[−g, h]` (proposition 7 of the former), by its logarithm.
struct BetaBinomial {
    g: f64,
    h: f64,
    r: f64,
}

impl BetaBinomial {
    fn new(v_opt: f64, alpha_opt: f64, g: f64, h: f64) -> Self {
        let certain = -2.0 * f64::ln(alpha_opt);
        let rho = v_opt / (certain + certain.ln_1p());
        Self { g, h, r: (rho - g * h).max(1e-3 * g * h) }
    }

    fn log(&self, s: f64, v: f64) -> f64 {
        let Self { g, h, r } = *self;
        let width = g + h;
        let (below, above) = (g * width, h * width);
        v / (g * h) * width.ln() - (v + h * s) / above * g.ln() - (v - g * s) / below * h.ln()
            + ln_beta((r + v - g * s) / below, (r + v + h * s) / above)
            - ln_beta(r / below, r / above)
    }

    fn bound(&self, v: f64, alpha: f64) -> f64 {
        root(0.0, v / self.g, |s| self.log(s, v) + alpha.ln())
    }
}

/// Where a function that is negative at `low` and positive at `high` changes its sign.
fn root(mut low: f64, mut high: f64, of: impl Fn(f64) -> f64) -> f64 {
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        if of(middle) < 0.0 { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

fn bernoulli_confidence_interval(successes: f64, trials: f64, alpha: f64, t_opt: f64) -> (f64, f64) {
    let mean = successes / trials;
    let evidence = |p: f64| {
        let scale = p * (1.0 - p);
        BetaBinomial::new(scale * t_opt, 0.05, p, 1.0 - p).log((mean - p) * trials, scale * trials)
            + alpha.ln()
    };
    (root(mean, 0.0, |p| if p <= 0.0 { 1.0 } else { evidence(p) }), root(mean, 1.0, evidence))
}

/// Theorem 3 of the latter, for quantiles from the median on, with δ = ½, s = 1.4 and η = 2.
fn double_stitching_bound(p: f64, t: f64, alpha: f64, m: f64) -> f64 {
    let (delta, s, eta) = (0.5, 1.4, 2.0f64);
    let k1 = (eta.powf(0.25) + eta.powf(-0.25)) / 2f64.sqrt();
    let k2 = f64::midpoint(eta.sqrt(), 1.0);
    let t = t.max(m);
    let logit = (p / (1.0 - p)).ln().abs();
    let j = (t / m).sqrt() * logit / (2.0 * delta) + 1.0;
    let zeta = zeta(s);
    let ell = s * (eta * t / m).ln().ln()
        + s * j.ln()
        + (2.0 * zeta * (2.0 * zeta + 1.0) / (alpha * eta.ln().powf(s))).ln();
    let c = (1.0 - 2.0 * p) / 3.0;
    let (variance, linear) = (p * (1.0 - p), k2 * c * ell);
    delta * (eta * t * variance / m).sqrt() + (k1 * k1 * variance * t * ell + linear * linear).sqrt() + linear
}

/// Riemann's: the first terms, and the rest by Euler and Maclaurin.
fn zeta(s: f64) -> f64 {
    let n = 1000.0f64;
    let head: f64 = (1..1000).map(|k| f64::from(k).powf(-s)).sum();
    head + n.powf(1.0 - s) / (s - 1.0) + 0.5 * n.powf(-s) + s / 12.0 * n.powf(-s - 1.0)
}

/// The two-sided p-value of both arms having the same quantile `p`: the least joint evidence against any value `x`
/// of it (section 6 of the latter).
fn quantile_ab_p_value(a: &[f64], b: &[f64], p: f64, t_opt: f64) -> f64 {
    let mixture = BetaBinomial::new(t_opt * p * (1.0 - p), 0.05, p, 1.0 - p);
    let evidence = |values: &[f64], x: f64| {
        let n = values.len() as f64;
        let of = |share: f64| mixture.log((share - p) * n, p * (1.0 - p) * n);
        // Between the shares of values below and up to `x`, the one that says least.
        let below = values.iter().filter(|value| **value < x).count() as f64 / n;
        let up_to = values.iter().filter(|value| **value <= x).count() as f64 / n;
        let least = golden(0.0, 1.0, of);
        of(least.clamp(below, up_to))
    };
    let least = a.iter().chain(b).map(|x| evidence(a, *x) + evidence(b, *x)).fold(f64::INFINITY, f64::min);
    (-least).exp().min(1.0)
}

/// Where a function with one valley is least.
fn golden(mut low: f64, mut high: f64, of: impl Fn(f64) -> f64) -> f64 {
    let ratio = (5f64.sqrt() - 1.0) / 2.0;
    for _ in 0..60 {
        let (a, b) = (high - ratio * (high - low), low + ratio * (high - low));
        if of(a) < of(b) { high = b } else { low = a }
    }
    f64::midpoint(low, high)
}

#[track_caller]
fn check(value: f64, expected: f64, within: f64) {
    assert!((value - expected).abs() < within, "{value:.12} {expected:.12}");
}

#[test]
fn normal_mixture() {
    check(normal_mixture_bound(100.0, 0.05, 100.0, 0.05), 30.352_089_903_763, 1e-9);
}

#[test]
fn beta_binomial_mixture() {
    let mixture = BetaBinomial::new(47.5, 0.05, 0.05, 0.95);
    check(mixture.bound(47.5, 0.05), 22.580_933_875_513, 1e-9);
}

#[test]
fn bernoulli() {
    let (low, high) = bernoulli_confidence_interval(10.0, 1000.0, 0.05, 1000.0);
    // As many digits as are known.
    check(low, 0.002_916_994_4, 1e-9);
    check(high, 0.022_370_820_5, 1e-9);
}

#[test]
fn double_stitching() {
    check(double_stitching_bound(0.95, 1000.0, 0.05, 100.0) / 1000.0, 0.030_812_6, 1e-7);
}

#[test]
fn quantiles_of_two_arms() {
    let range = |from: u32, to: u32| (from..=to).map(f64::from).collect::<Vec<_>>();
    check(quantile_ab_p_value(&range(1, 200), &range(61, 260), 0.95, 200.0), 0.001_779_46, 1e-8);
}
