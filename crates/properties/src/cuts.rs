//! Ways in which bytes may arrive.

/// `bytes` in one piece, byte by byte, and cut at places that depend on nothing but the bytes.
pub(crate) fn cuts(bytes: &[u8]) -> Vec<Vec<&[u8]>> {
    /// Longer ones take too long byte by byte: heads are parsed anew with each piece.
    const SHORT: usize = 512;
    let mut ways = vec![vec![bytes]];
    if bytes.len() <= SHORT {
        ways.push(bytes.chunks(1).collect());
    }
    let mut random = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| step(hash ^ u64::from(*byte)));
    for most in [3, 16, bytes.len() / 2] {
        let mut rest = bytes;
        let mut way = Vec::new();
        // Cut further and further apart, so that a long one does not become a thousand pieces.
        while !rest.is_empty() {
            random = step(random);
            let most = most.max(bytes.len() / 64).max(1) as u64;
            let (piece, after) = rest.split_at(((random >> 33) % most + 1).min(rest.len() as u64) as usize);
            way.push(piece);
            rest = after;
        }
        ways.push(way);
    }
    ways
}

fn step(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

#[cfg(test)]
mod tests {
    use super::cuts;

    #[test]
    fn nothing_is_lost() {
        for length in [0, 1, 2, 100, 5000] {
            let bytes: Vec<u8> = (0..length).map(|at| at as u8).collect();
            for way in cuts(&bytes) {
                assert_eq!(way.concat(), bytes);
            }
        }
        assert_eq!(cuts(b"abc")[1], [b"a", b"b", b"c"]);
    }
}
