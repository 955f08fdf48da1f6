//! Where a message belongs in its producer's trace: the headers `traceparent` and `tracestate` (W3C Trace Context). Pure.

use std::fmt;

/// The header that names the trace, and the span in it that a message came from.
pub const TRACEPARENT: &str = "traceparent";

/// The header with what tracing systems add to that.
pub const TRACESTATE: &str = "tracestate";

/// A longer `tracestate` is left out; at least so much of one should be handed on (section 3.3.1.5).
const MAX_STATE_BYTES: usize = 512;

/// More members than that no `tracestate` may have (section 3.3.1.1).
const MAX_STATE_MEMBERS: usize = 32;

/// The length of a `traceparent` of version 00, and where its dashes stand.
const PARENT_BYTES: usize = 55;
const DASHES: [usize; 3] = [2, 35, 52];

/// The only flag that is handed on: whether the trace is recorded. Others have to be zero in what a participant sends.
const SAMPLED: u8 = 1;

/// A place in somebody's trace. What is not well-formed never becomes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// `00-<trace>-<span>-<flags>`.
    parent: String,
    /// Empty without one.
    state: String,
}

impl TraceContext {
    /// Reads the two headers. A bad `traceparent` is none; a bad `tracestate` is left out (section 4.3).
    pub fn read(parent: &[u8], state: Option<&[u8]>) -> Option<Self> {
        let parent = parent_of(parent.trim_ascii())?;
        let state = state.and_then(|state| state_of(state.trim_ascii())).unwrap_or_default();
        Some(Self { parent, state })
    }

    /// From the text that the ledger keeps, as [`fmt::Display`] wrote it.
    pub fn kept(text: &str) -> Option<Self> {
        let (parent, state) = text.split_once(' ').unwrap_or((text, ""));
        Self::read(parent.as_bytes(), Some(state.as_bytes()))
    }

    /// The value of `traceparent`.
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// The value of `tracestate`; `None` without one.
    pub fn state(&self) -> Option<&str> {
        Some(self.state.as_str()).filter(|state| !state.is_empty())
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parent)?;
        self.state().map_or(Ok(()), |state| write!(f, " {state}"))
    }
}

fn parent_of(text: &[u8]) -> Option<String> {
    let (known, further) = text.split_at_checked(PARENT_BYTES)?;
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_well_formed = known.iter().enumerate().all(|(at, byte)| match DASHES.contains(&at) {
        true => *byte == b'-',
        false => is_hex(byte),
    });
    let known = str::from_utf8(known).ok().filter(|_| is_well_formed)?;
    let mut parts = known.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_zero = |id: &str| id.bytes().all(|byte| byte == b'0');
    // A later version may say more behind a further dash.
    let may_end_so =
        if version == "00" { further.is_empty() } else { further.first().is_none_or(|byte| *byte == b'-') };
    if version == "ff" || is_zero(trace) || is_zero(span) || !may_end_so {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()? & SAMPLED;
    Some(format!("00-{trace}-{span}-{flags:02x}"))
}

fn state_of(text: &[u8]) -> Option<String> {
    let text = str::from_utf8(text).ok().filter(|text| text.len() <= MAX_STATE_BYTES)?;
    let is_printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
    let members = || text.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|member| !member.is_empty());
    let is_member = |member: &str| {
        let pair = member.split_once('=');
        pair.is_some_and(|(key, value)| !key.is_empty() && !key.contains(' ') && !value.contains('='))
    };
    if !is_printable || members().count() > MAX_STATE_MEMBERS || !members().all(is_member) {
        return None;
    }
    Some(members().collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn read(parent: &str, state: &str) -> Option<TraceContext> {
        TraceContext::read(parent.as_bytes(), Some(state.as_bytes()))
    }

    #[test]
    fn a_well_formed_context_is_handed_on_as_it_came() {
        let context = read(PARENT, "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE").expect("well-formed");
        assert_eq!(context.parent(), PARENT);
        assert_eq!(context.state(), Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"));
        assert_eq!(read(PARENT, "").expect("well-formed").state(), None);
        assert_eq!(
            read(&PARENT.replace("-01", "-00"), "").expect("well-formed").parent(),
            PARENT.replace("-01", "-00")
        );
    }

    #[test]
    fn what_a_later_version_adds_is_left_out_and_flags_that_nobody_knows_are_zero() {
        for later in [
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ] {
            assert_eq!(read(later, "").expect(later).parent(), PARENT);
        }
    }

    #[test]
    fn a_context_that_is_not_well_formed_is_none() {
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-011",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333g-01",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
            "00-0af7651916cd43dd8448eb211c80319ö-b7ad6b7169203331-01",
        ] {
            assert_eq!(read(bad, "a=b"), None, "{bad:?}");
        }
    }

    #[test]
    fn a_bad_state_is_left_out_and_the_rest_counts() {
        let long = format!("a={}", "x".repeat(MAX_STATE_BYTES));
        let many: Vec<String> = (0..=MAX_STATE_MEMBERS).map(|n| format!("k{n}=v")).collect();
        for bad in ["no member", "=value", "a=b=c", "a=b,c", "a=\u{7f}", "a=\nb", "ä=b", &long, &many.join(",")] {
            let context = read(PARENT, bad).expect("its parent is well-formed");
            assert_eq!((context.parent(), context.state()), (PARENT, None), "{bad:?}");
        }
        assert_eq!(read(PARENT, " a=b ,, c=d,").expect("well-formed").state(), Some("a=b,c=d"));
    }

    #[test]
    fn what_the_ledger_keeps_is_what_was_read_and_anything_else_harms_nobody() {
        for state in ["", "a=b c,d=e"] {
            let context = read(PARENT, state).expect("well-formed");
            assert_eq!(TraceContext::kept(&context.to_string()), Some(context));
        }
        proptest!(|(bytes: Vec<u8>, text: String)| {
            for context in [TraceContext::read(&bytes, Some(&bytes)), TraceContext::kept(&text), read(PARENT, &text)].into_iter().flatten() {
                prop_assert_eq!(TraceContext::kept(&context.to_string()), Some(context));
            }
        });
    }
}
