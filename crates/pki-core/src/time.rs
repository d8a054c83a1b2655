//! Points in time as X.509 writes them: whole seconds, UTC.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::der::{self, DerError, Tlv, Writer};

/// A point in time in whole seconds since 1970-01-01T00:00:00Z, leap seconds
/// not counted.
///
/// Displays as RFC 3339 in UTC, for example `2026-11-22T13:30:00Z`.
///
/// ```
/// use pki_core::Time;
/// assert_eq!(Time::from_unix(1_795_354_200).to_string(), "2026-11-22T13:30:00Z");
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Time(i64);

impl Time {
    /// The last second that GeneralizedTime can write: 9999-12-31T23:59:59Z.
    pub const MAX: Self = Self(253_402_300_799);
    /// The first second of the year 1, well before any UTCTime.
    pub const MIN: Self = Self(-62_135_596_800);

    /// From seconds since the Unix epoch; values that X.509 cannot write
    /// become [`Time::MIN`] or [`Time::MAX`].
    pub const fn from_unix(seconds: i64) -> Self {
        if seconds < Self::MIN.0 {
            Self::MIN
        } else if seconds > Self::MAX.0 {
            Self::MAX
        } else {
            Self(seconds)
        }
    }

    /// Seconds since the Unix epoch.
    pub const fn unix(self) -> i64 {
        self.0
    }

    /// Later by the whole seconds of `duration`, at most [`Time::MAX`].
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self::from_unix(self.0.saturating_add_unsigned(duration.as_secs()))
    }

    /// Earlier by the whole seconds of `duration`, at least [`Time::MIN`].
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self::from_unix(self.0.saturating_sub_unsigned(duration.as_secs()))
    }

    /// UTCTime for 1950 to 2049, GeneralizedTime otherwise (RFC 5280 section 4.1.2.5).
    pub(crate) fn write(self, writer: &mut Writer) {
        let date = Civil::from(self);
        let text = [date.year / 100, date.year % 100, date.month, date.day, date.hour, date.minute, date.second];
        let mut digits = [b'Z'; 15];
        for (pair, number) in digits.chunks_exact_mut(2).zip(text) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "two decimal digits")]
            let number = number as u8;
            pair.copy_from_slice(&[b'0' + number / 10, b'0' + number % 10]);
        }
        if (1950..2050).contains(&date.year) {
            writer.element(der::UTC_TIME, &digits[2..]);
        } else {
            writer.element(der::GENERALIZED_TIME, &digits);
        }
    }

    /// Reads the one form that RFC 5280 allows: seconds, `Z`, no fraction.
    pub(crate) fn read(tlv: &Tlv<'_>) -> Result<Self, DerError> {
        let error = tlv.error("UTCTime or GeneralizedTime with seconds and Z");
        let (century, digits) = match (tlv.tag, tlv.value.len()) {
            (der::UTC_TIME, 13) => (None, &tlv.value[..12]),
            (der::GENERALIZED_TIME, 15) => (Some(two_digits(&tlv.value[..2]).ok_or(error)?), &tlv.value[2..14]),
            _ => return Err(error),
        };
        if tlv.value.last() != Some(&b'Z') {
            return Err(error);
        }
        let mut fields = [0; 6];
        for (field, pair) in fields.iter_mut().zip(digits.chunks_exact(2)) {
            *field = two_digits(pair).ok_or(error)?;
        }
        let [year, month, day, hour, minute, second] = fields;
        let century = century.unwrap_or(if year >= 50 { 19 } else { 20 });
        let date = Civil { year: century * 100 + year, month, day, hour, minute, second };
        let time = date.time();
        // A date that does not exist (30 February, hour 24) reads back as another one.
        if date.year == 0 || Civil::from(time) != date { Err(error) } else { Ok(time) }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Civil { year, month, day, hour, minute, second } = Civil::from(*self);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The proleptic Gregorian calendar.
#[derive(Clone, Copy, Eq, PartialEq)]
struct Civil {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

const SECONDS_A_DAY: i64 = 86_400;
/// Days of 400 years, after which the calendar repeats.
const DAYS_AN_ERA: i64 = 146_097;
/// From 0000-03-01, where a computing year starts, to 1970-01-01.
const DAYS_TO_EPOCH: i64 = 719_468;

impl Civil {
    /// Years are counted from March, so that a leap day is the last of its year.
    fn time(self) -> Time {
        let year = if self.month <= 2 { self.year - 1 } else { self.year };
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let month_from_march = (self.month + 9) % 12;
        let day_of_year = (153 * month_from_march + 2) / 5 + self.day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * DAYS_AN_ERA + day_of_era - DAYS_TO_EPOCH;
        Time(days * SECONDS_A_DAY + self.hour * 3600 + self.minute * 60 + self.second)
    }
}

impl From<Time> for Civil {
    fn from(time: Time) -> Self {
        let days = time.0.div_euclid(SECONDS_A_DAY) + DAYS_TO_EPOCH;
        let seconds = time.0.rem_euclid(SECONDS_A_DAY);
        let era = days.div_euclid(DAYS_AN_ERA);
        let day_of_era = days.rem_euclid(DAYS_AN_ERA);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            hour: seconds / 3600,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }
}

fn two_digits(pair: &[u8]) -> Option<i64> {
    match pair {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => Some(i64::from(tens - b'0') * 10 + i64::from(ones - b'0')),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::der::Reader;

    fn written(time: Time) -> Vec<u8> {
        let mut writer = Writer::default();
        time.write(&mut writer);
        writer.finish()
    }

    fn read(bytes: &[u8]) -> Result<Time, DerError> {
        Time::read(&Reader::new(bytes).any("Time")?)
    }

    #[test]
    fn the_century_changes_in_2050() {
        assert_eq!(written(Time::from_unix(2_524_607_999)), b"\x17\x0d491231235959Z");
        assert_eq!(written(Time::from_unix(2_524_608_000)), b"\x18\x0f20500101000000Z");
        assert_eq!(written(Time::from_unix(-631_152_000)), b"\x17\x0d500101000000Z");
        assert_eq!(written(Time::from_unix(-631_152_001)), b"\x18\x0f19491231235959Z");
    }

    #[test]
    fn dates_that_do_not_exist_are_refused() {
        for text in
            ["260229000000Z", "261301000000Z", "260100000000Z", "260101240000Z", "260101006000Z", "260101000060Z"]
        {
            let bytes = [&[0x17, 13][..], text.as_bytes()].concat();
            assert!(read(&bytes).is_err(), "{text}");
        }
        assert!(read(b"\x17\x0b2601010000Z").is_err(), "without seconds");
        assert!(read(b"\x17\x11260101000000+0100").is_err(), "with an offset");
        assert!(read(b"\x18\x0f00000101000000Z").is_err(), "year 0");
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_reads_back(seconds in Time::MIN.0..=Time::MAX.0) {
            let time = Time::from_unix(seconds);
            proptest::prop_assert_eq!(read(&written(time)), Ok(time));
        }
    }
}
