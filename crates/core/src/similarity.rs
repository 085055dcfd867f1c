//! How alike two answers are.

use std::collections::HashSet;

/// Of the pairs of neighbouring words that either text has, the share that both have: 1 for the same words in the same order,
/// 0 for nothing in common (the index of Jaccard).
pub fn similarity(one: &str, other: &str) -> f64 {
    let (one, other) = (pairs(one), pairs(other));
    let shared = one.intersection(&other).count();
    let all = one.len() + other.len() - shared;
    if all == 0 { 1.0 } else { shared as f64 / all as f64 }
}

/// With the beginning as a word, so that a single word makes a pair.
fn pairs(text: &str) -> HashSet<(&str, &str)> {
    let words = text.split_whitespace();
    std::iter::once("").chain(words.clone()).zip(words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_in_common_the_more_alike() {
        let check = |one: &str, other: &str, expected: f64| {
            assert_eq!(
                (similarity(one, other), similarity(other, one)),
                (expected, expected),
                "{one} | {other}"
            );
        };
        check("", "", 1.0);
        check("a", "", 0.0);
        check("a", "a", 1.0);
        check("a b c", " a  b\nc ", 1.0);
        check("a b c", "a b d", 0.5);
        check("a b c", "c b a", 0.0);
        check("a b", "a b c d", 0.5);
    }
}
