//! Bulk domain statistics (`virConnectGetAllDomainStats`, `virDomainListGetStats`), visited in place.
//!
//! A hundred domains make some ten thousand parameters. Nothing is allocated for any of them: the visitor
//! sees keys and strings as slices of the reply.
//!
//! ```text
//! records<16384> of { domain { name<>, uuid[16], id }, params<262144> of { key<>, type, value } }
//! ```
//!
//! Types are those of `virTypedParameterType`: 1 int, 2 unsigned, 3 hyper, 4 unsigned hyper, 5 double,
//! 6 boolean (all of fixed size) and 7 string. There is no telling how long a value of any other type is,
//! and the protocol's union has no arm for one: it is malformed. Unknown *keys* are the visitor's to skip.

use std::ops::BitOr;

use crate::calls::DomainRef;
use crate::printable::printable;
use crate::xdr::{Decoder, Malformed};

/// REMOTE_DOMAIN_LIST_MAX: domains in one reply or argument.
pub const MAX_DOMAINS: usize = 16_384;
/// REMOTE_CONNECT_GET_ALL_DOMAIN_STATS_MAX: parameters of one domain.
const MAX_PARAMS: usize = 262_144;

/// Groups of statistics, `virDomainStatsTypes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Groups(pub u32);

impl Groups {
    /// `state.*`: job-free.
    pub const STATE: Self = Self(1 << 0);
    /// `cpu.*`: takes the domain's job.
    pub const CPU_TOTAL: Self = Self(1 << 1);
    /// `balloon.*`: asks the monitor.
    pub const BALLOON: Self = Self(1 << 2);
    /// `vcpu.*`: asks the monitor, up to 48 keys a vCPU.
    pub const VCPU: Self = Self(1 << 3);
    /// `net.*`: job-free.
    pub const INTERFACE: Self = Self(1 << 4);
    /// `block.*`: asks the monitor.
    pub const BLOCK: Self = Self(1 << 5);
    /// Those that no domain's job is taken for.
    pub const JOB_FREE: Self = Self(Self::STATE.0 | Self::INTERFACE.0);

    /// True where every group of `other` is in `self`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The groups of `self` that are not in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The groups that are in both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// True where there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Groups {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Flags of a bulk call, `virConnectGetAllDomainStatsFlags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsFlags(pub u32);

impl StatsFlags {
    /// Only active domains (where all are asked for).
    pub const ACTIVE: Self = Self(1 << 0);
    /// Only inactive domains.
    pub const INACTIVE: Self = Self(1 << 1);
    /// Only persistent domains.
    pub const PERSISTENT: Self = Self(1 << 2);
    /// Only transient domains.
    pub const TRANSIENT: Self = Self(1 << 3);
    /// Only running domains.
    pub const RUNNING: Self = Self(1 << 4);
    /// Only paused domains.
    pub const PAUSED: Self = Self(1 << 5);
    /// Only shut-off domains.
    pub const SHUTOFF: Self = Self(1 << 6);
    /// Only domains in any other state.
    pub const OTHER: Self = Self(1 << 7);
    /// Leave out what a busy domain cannot give at once, in place of waiting for its job (libvirt 4.5).
    pub const NOWAIT: Self = Self(1 << 29);
    /// Images below the top of each disk too.
    pub const BACKING: Self = Self(1 << 30);
    /// Refuse the call if a group is not supported, in place of leaving the group out.
    pub const ENFORCE_STATS: Self = Self(1 << 31);

    /// True where every flag of `other` is in `self`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags of `self` that are not in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for StatsFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A parameter's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Signed, of 32 or 64 bits on the wire.
    Int(i64),
    /// Unsigned, of 32 or 64 bits on the wire.
    UInt(u64),
    /// Floating point.
    Double(f64),
    /// Truth.
    Bool(bool),
    /// Text.
    Str(&'a str),
}

/// Sees a bulk reply pass by.
pub trait StatsVisitor {
    /// A domain's record begins.
    fn begin(&mut self, domain: DomainRef<'_>);
    /// One of its parameters, e.g. `net.0.rx.bytes`.
    fn param(&mut self, key: &str, value: Value<'_>);
    /// The record is whole.
    fn end(&mut self);
}

/// Visits a whole reply; returns the number of records. A malformed reply may have shown some records before
/// the error: they were well formed.
pub(crate) fn visit(d: &mut Decoder<'_>, visitor: &mut impl StatsVisitor) -> Result<usize, Malformed> {
    // A record takes at least name (4), uuid (16), id (4) and the count of its parameters (4).
    let records = d.count(MAX_DOMAINS, 28, "records")?;
    for _ in 0..records {
        visitor.begin(DomainRef::decode(d)?);
        // A parameter takes at least its key's length (4), its type (4) and a value (4).
        let params = d.count(MAX_PARAMS, 12, "parameters")?;
        for _ in 0..params {
            let (key, value) = param(d)?;
            visitor.param(key, value);
        }
        visitor.end();
    }
    d.end()?;
    Ok(records)
}

#[inline]
pub(crate) fn param<'a>(d: &mut Decoder<'a>) -> Result<(&'a str, Value<'a>), Malformed> {
    let key = d.string()?;
    let before = d.clone();
    let value = match d.u32()? {
        1 => Value::Int(i64::from(d.i32()?)),
        2 => Value::UInt(u64::from(d.u32()?)),
        3 => Value::Int(d.i64()?),
        4 => Value::UInt(d.u64()?),
        5 => Value::Double(d.f64()?),
        6 => Value::Bool(d.u32()? != 0),
        7 => Value::Str(d.string()?),
        other => {
            let key = printable(key);
            return Err(before.malformed(format!("parameter type 1 to 7, not {other}, for \"{key}\"")));
        }
    };
    Ok((key, value))
}
