//! Times of day and places.

use serde::{Serialize, Serializer};

use crate::units::{Complaint, Unit, unit};

/// A time of day, to the minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Clock(pub(crate) u16);

unit!(Clock);

impl Unit for Clock {
    const FORMAT: &'static str = "time-of-day";
    const EXPECTED: &'static str = "hours and minutes, from `\"00:00\"` to `\"24:00\"`, in quotes";

    fn parse(text: &str) -> Result<Self, Complaint> {
        const NOT: Complaint = Complaint::new("is not a time of day", Clock::EXPECTED);
        let (hours, minutes) = text.split_once(':').ok_or(NOT)?;
        let number = |digits: &str| {
            let plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
            if plain { digits.parse::<u16>().ok() } else { None }
        };
        let (hours, minutes) = (number(hours).ok_or(NOT)?, number(minutes).ok_or(NOT)?);
        let since_midnight = hours * 60 + minutes;
        if minutes < 60 && since_midnight <= Self::end_of_day().0 {
            Ok(Self(since_midnight))
        } else {
            Err(NOT)
        }
    }
}

impl Clock {
    pub(crate) const fn midnight() -> Self {
        Self(0)
    }

    pub(crate) const fn end_of_day() -> Self {
        Self(24 * 60)
    }
}

impl Serialize for Clock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:02}:{:02}", self.0 / 60, self.0 % 60))
    }
}

/// A day, or a minute of it, of no place in particular.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DateTime {
    Day(jiff::civil::Date),
    Minute(jiff::civil::DateTime),
}

unit!(DateTime);

impl Unit for DateTime {
    const FORMAT: &'static str = "day-or-minute";
    const EXPECTED: &'static str =
        "a day, such as `2026-12-20`, or a minute of it, such as `2026-12-20T18:00`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        const NOT: Complaint = Complaint::new("is not a date", DateTime::EXPECTED);
        let whole = |format: &str, text: &str| jiff::fmt::strtime::parse(format, text).map_err(|_| NOT);
        // Its readers take fewer digits, too.
        match text.len() {
            10 => whole("%Y-%m-%d", text)?.to_date().map(Self::Day).map_err(|_| NOT),
            16 => whole("%Y-%m-%dT%H:%M", text)?.to_datetime().map(Self::Minute).map_err(|_| NOT),
            _ => Err(NOT),
        }
    }
}

impl DateTime {
    /// Its first moment in a place, in milliseconds since the Unix epoch.
    pub(crate) fn begins(self, tz: &TimeZoneName) -> u64 {
        match self {
            Self::Day(day) => in_place(day.at(0, 0, 0, 0), tz),
            Self::Minute(minute) => in_place(minute, tz),
        }
    }

    /// The first moment that does not belong to it any more; a minute is only its beginning.
    pub(crate) fn ends(self, tz: &TimeZoneName) -> u64 {
        match self {
            Self::Day(day) => in_place(day.tomorrow().unwrap_or(day).at(0, 0, 0, 0), tz),
            Self::Minute(minute) => in_place(minute, tz),
        }
    }
}

/// Where the clock skips this time, or shows it twice: what jiff calls compatible.
fn in_place(at: jiff::civil::DateTime, tz: &TimeZoneName) -> u64 {
    let zone = jiff::tz::TimeZone::get(&tz.0).unwrap_or(jiff::tz::TimeZone::UTC);
    let millis = at.to_zoned(zone).map_or(0, |zoned| zoned.timestamp().as_millisecond());
    u64::try_from(millis).unwrap_or(0)
}

impl Serialize for DateTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Day(day) => serializer.collect_str(day),
            Self::Minute(minute) => serializer.collect_str(&minute.strftime("%Y-%m-%dT%H:%M")),
        }
    }
}

/// A time zone that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TimeZoneName(pub(crate) String);

unit!(TimeZoneName);

impl Unit for TimeZoneName {
    const FORMAT: &'static str = "time-zone";
    const EXPECTED: &'static str = "the IANA name of a time zone, such as `Europe/Berlin` or `UTC`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        match jiff::tz::TimeZone::get(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err(Complaint::new("is not a time zone", Self::EXPECTED)),
        }
    }
}

impl TimeZoneName {
    pub(crate) fn utc() -> Self {
        Self("UTC".to_owned())
    }
}

impl Serialize for TimeZoneName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}
