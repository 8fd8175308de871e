//! The public status and exception of a payment. Neither is stored as a fact: [`Payment`](crate::Payment) derives them.

use std::fmt;
use std::str::FromStr;

/// Where a payment is in its life; the rules are in [`lifecycle`](crate::lifecycle).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Not paid yet.
    Pending,
    /// Paid in time, not deep enough yet.
    Detected,
    /// Paid in time, by transfers that are deep enough.
    Confirmed,
    /// Confirmed, and swept to the treasury for good.
    Settled,
    /// Not paid in time.
    Expired,
    /// Cancelled by the merchant.
    Cancelled,
}

/// Why a person may have to look at a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exception {
    /// Something arrived in time, but less than the amount by more than is tolerated.
    Underpaid,
    /// More arrived than the amount by more than is tolerated.
    Overpaid,
    /// A transfer arrived late and left the payment expired, or arrived for a cancelled one.
    Late,
}

/// A text that is not the name of a status or an exception.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected one of {expected}, got {got:?}")]
pub struct UnknownName {
    pub expected: &'static str,
    pub got: String,
}

impl Status {
    pub const ALL: [Self; 6] = [Self::Pending, Self::Detected, Self::Confirmed, Self::Settled, Self::Expired, Self::Cancelled];

    /// The public name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Detected => "detected",
            Self::Confirmed => "confirmed",
            Self::Settled => "settled",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

impl FromStr for Status {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| UnknownName {
            expected: "pending, detected, confirmed, settled, expired, cancelled",
            got: text.to_owned(),
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Exception {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        [Self::Underpaid, Self::Overpaid, Self::Late]
            .into_iter()
            .find(|exception| exception.as_str() == text)
            .ok_or_else(|| UnknownName { expected: "underpaid, overpaid, late", got: text.to_owned() })
    }
}

impl Exception {
    /// The public name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Underpaid => "underpaid",
            Self::Overpaid => "overpaid",
            Self::Late => "late",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_and_exception_is_read_by_the_name_that_it_is_written_by() {
        let names = ["pending", "detected", "confirmed", "settled", "expired", "cancelled"];
        for (status, name) in Status::ALL.into_iter().zip(names) {
            assert_eq!((status.to_string().as_str(), name.parse()), (name, Ok(status)));
        }
        let names = [(Exception::Underpaid, "underpaid"), (Exception::Overpaid, "overpaid"), (Exception::Late, "late")];
        for (exception, name) in names {
            assert_eq!((exception.as_str(), name.parse()), (name, Ok(exception)));
        }
        assert!("".parse::<Status>().is_err() && "".parse::<Exception>().is_err());
    }
}
