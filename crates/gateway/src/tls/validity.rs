//! From when until when a certificate is valid: the one thing that rustls does not tell of our own.

use std::fmt;

/// Seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: u64,
    pub(super) not_after: u64,
}

/// Reads it off a certificate in DER (RFC 5280, section 4.1); `None` if this is not a certificate.
pub(super) fn validity(certificate: &[u8]) -> Option<Validity> {
    let (SEQUENCE, certificate, _) = element(certificate)? else { return None };
    let (SEQUENCE, mut fields, _) = element(certificate)? else { return None };
    // The version may be left out. Serial number, algorithm and issuer follow.
    if let (VERSION, _, rest) = element(fields)? {
        fields = rest;
    }
    for _ in 0..3 {
        (_, _, fields) = element(fields)?;
    }
    let (SEQUENCE, times, _) = element(fields)? else { return None };
    let (kind, not_before, rest) = element(times)?;
    let (other_kind, not_after, _) = element(rest)?;
    Some(Validity { not_before: time(kind, not_before)?, not_after: time(other_kind, not_after)? })
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Tag and content of the first element, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // So many bytes of length follow.
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`, the only forms allowed in certificates.
fn time(kind: u8, text: &[u8]) -> Option<u64> {
    let digits = text.strip_suffix(b"Z")?;
    let digits =
        std::str::from_utf8(digits).ok().filter(|it| it.bytes().all(|byte| byte.is_ascii_digit()))?;
    let (year, rest) = match (kind, digits.len()) {
        (UTC_TIME, 12) => {
            let year: i64 = digits[..2].parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &digits[2..])
        }
        (GENERALIZED_TIME, 14) => (digits[..4].parse().ok()?, &digits[4..]),
        _ => return None,
    };
    let pair = |at: usize| rest[at..at + 2].parse::<i64>().ok();
    let (month, day, hour, minute, second) = (pair(0)?, pair(2)?, pair(4)?, pair(6)?, pair(8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let seconds = days(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
    // What began before 1970 has begun.
    Some(u64::try_from(seconds).unwrap_or(0))
}

const DAY: i64 = 24 * 60 * 60;

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years are taken to begin in March, so that the leap day
/// is the last of its year; then month `m` begins at day `(153 m + 2) / 5`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 1
        - 719_468
}

/// A moment, in seconds since the Unix epoch, shown as its date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Day(pub(super) u64);

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Later than any calendar cares for, and a bound for the search below.
        const LAST: u64 = 253_402_300_799;
        let wanted = self.0.min(LAST) as i64 / DAY;
        let mut year = 1970 + wanted / 366;
        while days(year + 1, 1, 1) <= wanted {
            year += 1;
        }
        let month = (2..=12).take_while(|month| days(year, *month, 1) <= wanted).last().unwrap_or(1);
        write!(f, "{year}-{month:02}-{:02}", wanted - days(year, month, 1) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_there_and_back() {
        for (text, seconds) in [
            ("19700101000000Z", 0),
            ("19700228235959Z", 5_097_599),
            ("20000229120000Z", 951_825_600),
            ("20240301000000Z", 1_709_251_200),
            ("20991231235959Z", 4_102_444_799),
            ("99991231235959Z", 253_402_300_799),
        ] {
            assert_eq!(time(GENERALIZED_TIME, text.as_bytes()), Some(seconds), "{text}");
            let date = format!("{}-{}-{}", &text[..4], &text[4..6], &text[6..8]);
            assert_eq!(Day(seconds).to_string(), date);
        }
        assert_eq!(time(UTC_TIME, b"700101000000Z"), Some(0));
        assert_eq!(time(UTC_TIME, b"491231235959Z"), time(GENERALIZED_TIME, b"20491231235959Z"));
        for bad in [&b"7001010000Z"[..], b"700101000000", b"70010100000xZ", b"701301000000Z", b""] {
            assert_eq!(time(UTC_TIME, bad), None);
        }
    }

    #[test]
    fn of_certificates() {
        // Before and after 2050, from when on the other form of time is used.
        for (until, not_after) in [((2049, 12, 31), 2_524_521_600), ((4096, 1, 1), 67_090_118_400)] {
            let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).expect("a name");
            params.not_before = rcgen::date_time_ymd(1999, 12, 31);
            params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
            let key = rcgen::KeyPair::generate().expect("a key");
            let certificate = params.self_signed(&key).expect("a certificate");
            assert_eq!(validity(certificate.der()), Some(Validity { not_before: 946_598_400, not_after }));
            for length in 0..60 {
                assert_eq!(validity(&certificate.der()[..length]), None);
            }
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_validity() {
        for bad in
            [&b""[..], b"\x30", b"\x30\x82\xff", b"\x30\x84\xff\xff\xff\xff", b"\x30\x02\x30\x00", b"text"]
        {
            assert_eq!(validity(bad), None);
        }
    }
}
