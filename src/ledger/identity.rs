//! The rule of identity: what a message means for a lead that is there already. Pure.

use super::model::{Arrival, LeadState};

/// A row that is there already.
pub(super) struct Known {
    pub(super) state: LeadState,
    pub(super) same_body: bool,
    /// It has this batch's lease.
    pub(super) ours: bool,
    /// It has an attempt under this batch's lease: this is a try that was given up and comes late, after another has done it all.
    pub(super) done_by_us: bool,
    pub(super) elsewhere: bool,
    pub(super) attempts: u32,
    pub(super) replays: i32,
    /// It had this body before a message replaced it.
    pub(super) had_this_body: bool,
    /// It had this body before a person corrected or erased it.
    pub(super) decided: bool,
}

/// What to do with an arrival whose id is known.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Our own commit, whose answer was lost.
    AlreadyLeased,
    Repeat,
    Replay,
    /// A lead of its own under an id derived from both.
    Conflict,
    /// The same, but a person holds the first: it is held too.
    HeldConflict,
    /// The id belongs to a lead of another destination.
    Elsewhere,
}

/// The rule of identity: what a message means for the lead that has its id.
///
/// `given`: this very batch has dealt with a message of that id before.
pub(super) fn decide(known: &Known, arrival: &Arrival, given: bool) -> Decision {
    if known.elsewhere {
        return Decision::Elsewhere;
    }
    // To its producer it is the message that it was, and a person has decided what becomes of that.
    let is_open = matches!(known.state, LeadState::Pending | LeadState::Delivered | LeadState::Duplicate);
    if known.decided && (is_open || !arrival.replay) {
        return Decision::Repeat;
    }
    if known.ours && known.same_body && !given {
        return Decision::AlreadyLeased;
    }
    if known.done_by_us && known.same_body && !given {
        return Decision::Repeat;
    }
    // A redelivery of the very message that ended this way, or of one that it replaced, must not start it again.
    let is_old_news = arrival.redelivered && !arrival.replay && (known.same_body || known.had_this_body);
    match known.state {
        LeadState::Pending | LeadState::Delivered | LeadState::Duplicate => {
            if known.same_body || is_old_news {
                Decision::Repeat
            } else {
                Decision::Conflict
            }
        }
        // As invalid as before: nothing would change.
        LeadState::Invalid if known.same_body && !arrival.violations.is_empty() => Decision::Repeat,
        LeadState::Invalid | LeadState::Rejected | LeadState::Exhausted => {
            if is_old_news {
                Decision::Repeat
            } else {
                Decision::Replay
            }
        }
        LeadState::Uncertain | LeadState::Cancelled => match (arrival.replay, known.same_body || is_old_news) {
            (true, _) => Decision::Replay,
            (false, true) => Decision::Repeat,
            (false, false) => Decision::HeldConflict,
        },
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::lead::{Keys, LeadId};

    fn known(state: LeadState, same_body: bool, ours: bool) -> Known {
        Known {
            state,
            same_body,
            ours,
            done_by_us: false,
            elsewhere: false,
            attempts: 0,
            replays: 0,
            had_this_body: false,
            decided: false,
        }
    }

    fn arrival(redelivered: bool, replay: bool) -> Arrival {
        Arrival {
            id: LeadId::of_content(b""),
            body: Bytes::new(),
            message_id: None,
            redelivered,
            replay,
            keys: Keys::default(),
            violations: Vec::new(),
            trace: None,
        }
    }

    #[test]
    fn a_message_whose_body_a_person_corrected_or_erased_starts_nothing_unless_its_producer_insists() {
        for state in LeadState::ALL {
            let known = Known { decided: true, ..known(state, false, false) };
            for redelivered in [false, true] {
                assert_eq!(decide(&known, &arrival(redelivered, false), false), Decision::Repeat, "{state}");
            }
            let has_it = matches!(state, LeadState::Pending | LeadState::Delivered | LeadState::Duplicate);
            let insisted = if has_it { Decision::Repeat } else { Decision::Replay };
            assert_eq!(decide(&known, &arrival(false, true), false), insisted, "{state}");
        }
    }

    #[test]
    fn a_lost_answer_is_told_from_a_second_message_in_the_same_batch() {
        let arrival = arrival(false, false);
        let pending = |same_body| known(LeadState::Pending, same_body, true);
        assert_eq!(decide(&pending(true), &arrival, false), Decision::AlreadyLeased);
        assert_eq!(decide(&pending(true), &arrival, true), Decision::Repeat);
        assert_eq!(decide(&pending(false), &arrival, true), Decision::Conflict);
        assert_eq!(decide(&pending(false), &arrival, false), Decision::Conflict);
    }

    #[test]
    fn a_try_that_comes_late_does_not_start_again_what_another_try_has_ended() {
        for state in LeadState::ALL {
            let known = Known { done_by_us: true, ..known(state, true, false) };
            assert_eq!(decide(&known, &arrival(false, false), false), Decision::Repeat, "{state}");
        }
        let second = decide(
            &Known { done_by_us: true, ..known(LeadState::Rejected, true, false) },
            &arrival(false, false),
            true,
        );
        assert_eq!(second, Decision::Replay, "another message of the same batch");
    }

    #[test]
    fn a_redelivery_of_a_message_that_was_replaced_since_is_old_news_in_every_state() {
        for state in LeadState::ALL {
            let known = Known { had_this_body: true, ..known(state, false, false) };
            assert_eq!(decide(&known, &arrival(true, false), false), Decision::Repeat, "{state}");
            assert_ne!(decide(&known, &arrival(false, false), false), Decision::Repeat, "{state}: published again");
        }
    }

    #[test]
    fn the_rule_of_identity_holds_for_every_state() {
        use Decision::{Conflict, HeldConflict, Repeat, Replay};
        use LeadState::{Cancelled, Delivered, Duplicate, Exhausted, Invalid, Pending, Rejected, Uncertain};
        // state; then same body: plain, redelivered, by header; then another body: plain, redelivered, by header
        let table = [
            (Pending, [Repeat, Repeat, Repeat], [Conflict, Conflict, Conflict]),
            (Delivered, [Repeat, Repeat, Repeat], [Conflict, Conflict, Conflict]),
            (Duplicate, [Repeat, Repeat, Repeat], [Conflict, Conflict, Conflict]),
            (Invalid, [Replay, Repeat, Replay], [Replay, Replay, Replay]),
            (Rejected, [Replay, Repeat, Replay], [Replay, Replay, Replay]),
            (Exhausted, [Replay, Repeat, Replay], [Replay, Replay, Replay]),
            (Uncertain, [Repeat, Repeat, Replay], [HeldConflict, HeldConflict, Replay]),
            (Cancelled, [Repeat, Repeat, Replay], [HeldConflict, HeldConflict, Replay]),
        ];
        for (state, same, other) in table {
            for (same_body, expected) in [(true, same), (false, other)] {
                for ((redelivered, replay), expected) in
                    [(false, false), (true, false), (true, true)].into_iter().zip(expected)
                {
                    let arrival = arrival(redelivered, replay);
                    let known = known(state, same_body, false);
                    let case = format!("{state}, same body {same_body}, redelivered {redelivered}, replay {replay}");
                    assert_eq!(decide(&known, &arrival, false), expected, "{case}");
                }
            }
        }
    }
}
