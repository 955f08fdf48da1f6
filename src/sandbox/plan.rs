//! Which request meets which fault.
//!
//! ```text
//!              head read          body read
//!   request ──> script ──────────> rules ──> rates ──> as usual
//!                 └─ (no rules) rates
//! ```
//!
//! # Rules
//! - The script goes first: one entry per request of its endpoint, in the order in which the requests arrive.
//! - A rule looks at the lead's email, so it waits for the body. It is more particular than a rate and goes before it.
//! - A rate depends on nothing but the seed and the ordinal number of the request at its endpoint: the same seed gives
//!   the same sequence of faults, however the requests are timed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::Endpoint;
use super::faults::Fault;

/// Faults to come, as a document: that of `POST /_sandbox/faults`, and of a file of faults.
///
/// A member that is absent leaves that part of the plan as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultPlan {
    /// One fault per request, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<Vec<Fault>>,
    /// Faults by chance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates: Option<Vec<Rate>>,
    /// Faults by email.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<Rule>>,
    /// Seed of the rates; setting it starts their sequence anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// A fault that some of the requests meet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// The share of requests, 0 to 1.
    pub probability: f64,
    /// What they meet.
    pub fault: Fault,
}

/// A fault for the leads with a certain email, or with a certain identity at an API that needs no email: whatever is in
/// [`Entry::email`](super::Entry::email).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Part of the email, in any case.
    #[serde(rename = "match")]
    pub matching: String,
    /// How many requests of each such email meet the fault, all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// What they meet.
    pub fault: Fault,
}

impl FaultPlan {
    /// The rules that a type cannot hold.
    ///
    /// # Errors
    /// Says which rate or rule makes no sense.
    pub fn check(&self) -> Result<(), String> {
        for endpoint in Endpoint::ALL {
            let rates = self.rates.iter().flatten().filter(|rate| rate.fault.on == endpoint);
            let mut total = 0.0;
            for Rate { probability, .. } in rates {
                if !(0.0..=1.0).contains(probability) {
                    return Err(format!("probability {probability} is not from 0 to 1"));
                }
                total += probability;
            }
            if total > 1.0 + f64::EPSILON * 16.0 {
                return Err(format!("the probabilities of one endpoint add up to {total}, more than 1"));
            }
        }
        for rule in self.rules.iter().flatten() {
            if rule.matching.is_empty() {
                return Err("a rule needs a match".to_owned());
            }
            if rule.fault.on != Endpoint::Leads {
                let on = rule.fault.on.name();
                return Err(format!("a rule looks at a lead's email, so it cannot be on {on}"));
            }
        }
        Ok(())
    }
}

/// The faults of a running sandbox.
#[derive(Debug)]
pub struct Faults {
    plan: Mutex<Plan>,
}

impl Faults {
    pub(super) fn new(seed: u64, begin: &FaultPlan) -> Self {
        let mut plan = Plan { seed, ..Plan::default() };
        plan.set(begin);
        Self { plan: Mutex::new(plan) }
    }

    /// Replaces the parts that the plan has.
    ///
    /// # Errors
    /// See [`FaultPlan::check`]; nothing has changed then.
    pub fn set(&self, plan: &FaultPlan) -> Result<(), String> {
        plan.check()?;
        self.lock().set(plan);
        Ok(())
    }

    /// Replaces the script.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        let script = Some(faults.into_iter().collect());
        self.lock().set(&FaultPlan { script, ..FaultPlan::default() });
    }

    /// Adds a rule: leads whose email contains `matching` meet the fault, each of them `times` times or always.
    pub fn rule(&self, matching: &str, times: Option<u32>, fault: Fault) {
        let fault = Fault { on: Endpoint::Leads, ..fault };
        self.lock().rules.push(Rule { matching: matching.to_lowercase(), times, fault });
    }

    /// Adds a rate.
    ///
    /// # Errors
    /// When all rates of that endpoint together come to more than 1.
    pub fn rate(&self, probability: f64, fault: Fault) -> Result<(), String> {
        let mut plan = self.lock();
        let mut rates = plan.rates.clone();
        rates.push(Rate { probability, fault });
        let rates = FaultPlan { rates: Some(rates), ..FaultPlan::default() };
        rates.check()?;
        plan.set(&rates);
        Ok(())
    }

    /// Removes script, rates and rules.
    pub fn clear(&self) {
        let none = FaultPlan { script: Some(vec![]), rates: Some(vec![]), rules: Some(vec![]), seed: None };
        self.lock().set(&none);
    }

    /// How many entries of the script have not been met.
    pub fn script_left(&self) -> usize {
        self.lock().script.iter().map(VecDeque::len).sum()
    }

    /// What is to come: the rest of the script, and the rest.
    pub fn plan(&self) -> FaultPlan {
        let plan = self.lock();
        FaultPlan {
            script: Some(plan.script.iter().flatten().cloned().collect()),
            rates: Some(plan.rates.clone()),
            rules: Some(plan.rules.clone()),
            seed: Some(plan.seed),
        }
    }

    /// The fault for a request of which the head is known.
    pub(super) fn at_head(&self, endpoint: Endpoint) -> AtHead {
        self.lock().at_head(endpoint)
    }

    /// The fault for a lead, when [`at_head`](Self::at_head) has asked for its email.
    pub(super) fn at_body(&self, ordinal: u64, email: Option<&str>) -> Option<Fault> {
        self.lock().at_body(ordinal, email)
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known when only the head is.
#[derive(Debug, PartialEq)]
pub(super) enum AtHead {
    /// The request meets this fault.
    Fault(Fault),
    /// The request meets none.
    Nothing,
    /// It depends on the email. Holds the ordinal of the request.
    AskAgain(u64),
}

/// A number from 0 to 1 that depends on its arguments alone.
pub(super) fn roll(seed: u64, endpoint: Endpoint, ordinal: u64) -> f64 {
    let salt = match endpoint {
        Endpoint::Leads => 0x6c65_6164,
        Endpoint::Token => 0x746f_6b65,
        Endpoint::Query => 0x7175_6572,
        Endpoint::Logout => 0x6c6f_676f,
    };
    // Neighbouring ordinals must not give neighbouring seeds: the odd factor spreads them over all 64 bits.
    fastrand::Rng::with_seed((seed ^ salt).wrapping_add(ordinal.wrapping_mul(0x9e37_79b9_7f4a_7c15))).f64()
}

/// The fault that a roll falls on: the probabilities are laid end to end.
fn by_rate(rates: &[Rate], endpoint: Endpoint, roll: f64) -> Option<&Fault> {
    let mut end = 0.0;
    rates.iter().filter(|rate| rate.fault.on == endpoint).find_map(|rate| {
        end += rate.probability;
        (roll < end).then_some(&rate.fault)
    })
}

#[derive(Debug, Default)]
struct Plan {
    seed: u64,
    script: [VecDeque<Fault>; Endpoint::COUNT],
    rates: Vec<Rate>,
    rules: Vec<Rule>,
    /// How often an email has met a rule, for the rules that end.
    met: HashMap<(usize, Box<str>), u32>,
    /// Requests so far, per endpoint.
    seen: [u64; Endpoint::COUNT],
}

impl Plan {
    fn set(&mut self, plan: &FaultPlan) {
        if let Some(script) = &plan.script {
            self.script = Default::default();
            for fault in script {
                self.script[fault.on.index()].push_back(fault.clone());
            }
        }
        if let Some(rates) = &plan.rates {
            self.rates.clone_from(rates);
        }
        if let Some(rules) = &plan.rules {
            self.rules =
                rules.iter().map(|rule| Rule { matching: rule.matching.to_lowercase(), ..rule.clone() }).collect();
            self.met.clear();
        }
        if let Some(seed) = plan.seed {
            self.seed = seed;
            self.seen = [0; Endpoint::COUNT];
        }
    }

    fn at_head(&mut self, endpoint: Endpoint) -> AtHead {
        let ordinal = self.seen[endpoint.index()];
        self.seen[endpoint.index()] += 1;
        if let Some(fault) = self.script[endpoint.index()].pop_front() {
            return AtHead::Fault(fault);
        }
        if endpoint == Endpoint::Leads && !self.rules.is_empty() {
            return AtHead::AskAgain(ordinal);
        }
        if self.rates.is_empty() {
            return AtHead::Nothing;
        }
        match by_rate(&self.rates, endpoint, roll(self.seed, endpoint, ordinal)) {
            Some(fault) => AtHead::Fault(fault.clone()),
            None => AtHead::Nothing,
        }
    }

    fn at_body(&mut self, ordinal: u64, email: Option<&str>) -> Option<Fault> {
        let rule = email.and_then(|email| self.by_rule(email));
        rule.or_else(|| by_rate(&self.rates, Endpoint::Leads, roll(self.seed, Endpoint::Leads, ordinal)).cloned())
    }

    /// The first rule that the email falls under and has not used up. `email` is in lower case.
    fn by_rule(&mut self, email: &str) -> Option<Fault> {
        for (index, rule) in self.rules.iter().enumerate() {
            if !email.contains(&rule.matching) {
                continue;
            }
            let Some(times) = rule.times else { return Some(rule.fault.clone()) };
            let met = self.met.entry((index, email.into())).or_default();
            if *met < times {
                *met += 1;
                return Some(rule.fault.clone());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Plan {
        let mut plan = Plan::default();
        plan.set(&serde_json::from_str(text).unwrap());
        plan
    }

    fn kinds(plan: &mut Plan, endpoint: Endpoint, requests: usize) -> Vec<&'static str> {
        let mut next = || match plan.at_head(endpoint) {
            AtHead::Fault(fault) => fault.kind.name(),
            AtHead::Nothing => "-",
            AtHead::AskAgain(_) => "?",
        };
        (0..requests).map(|_| next()).collect()
    }

    #[test]
    fn script_is_met_in_order_and_per_endpoint() {
        let mut plan = plan(
            r#"{"script":[{"kind":"reset"},{"kind":"hang","on":"token"},{"kind":"none"},{"kind":"close"},
                          {"kind":"cut","on":"logout"}]}"#,
        );
        assert_eq!(kinds(&mut plan, Endpoint::Leads, 4), ["reset", "none", "close", "-"]);
        assert_eq!(kinds(&mut plan, Endpoint::Token, 2), ["hang", "-"]);
        assert_eq!(kinds(&mut plan, Endpoint::Logout, 2), ["cut", "-"]);
        assert_eq!(kinds(&mut plan, Endpoint::Query, 1), ["-"]);
    }

    #[test]
    fn rates_repeat_exactly_for_the_same_seed() {
        let text = r#"{"seed":7,"rates":[{"probability":0.2,"fault":{"kind":"reset"}},{"probability":0.3,"fault":{"kind":"hang"}}]}"#;
        let once = kinds(&mut plan(text), Endpoint::Leads, 2000);
        assert_eq!(once, kinds(&mut plan(text), Endpoint::Leads, 2000));
        assert_ne!(once, kinds(&mut plan(&text.replace(":7", ":8")), Endpoint::Leads, 2000));
        let share = |name: &str| once.iter().filter(|kind| **kind == name).count();
        assert!((320..480).contains(&share("reset")), "{}", share("reset"));
        assert!((500..700).contains(&share("hang")), "{}", share("hang"));
        assert_eq!(kinds(&mut plan(text), Endpoint::Token, 100), ["-"; 100]);
    }

    #[test]
    fn a_rule_with_times_ends_for_each_email_by_itself() {
        let mut plan = plan(r#"{"rules":[{"match":"+Flaky","times":2,"fault":{"kind":"status","status":503}}]}"#);
        let mut met = |email: &str| plan.at_body(0, Some(email)).is_some();
        assert_eq!([met("a+flaky@x.io"), met("a+flaky@x.io"), met("a+flaky@x.io")], [true, true, false]);
        assert!(met("b+flaky@x.io"));
        assert!(!met("c@x.io"));
    }

    #[test]
    fn script_goes_before_rules_and_rules_before_rates() {
        let mut plan = plan(
            r#"{"script":[{"kind":"reset"}],
                "rules":[{"match":"a@","fault":{"kind":"hang"}}],
                "rates":[{"probability":1,"fault":{"kind":"close"}}]}"#,
        );
        assert_eq!(kinds(&mut plan, Endpoint::Leads, 2), ["reset", "?"]);
        let kind = |plan: &mut Plan, email| plan.at_body(1, email).unwrap().kind.name();
        assert_eq!(kind(&mut plan, Some("a@x.io")), "hang");
        assert_eq!(kind(&mut plan, Some("b@x.io")), "close");
        assert_eq!(kind(&mut plan, None), "close");
    }

    #[test]
    fn a_plan_that_makes_no_sense_is_refused() {
        for text in [
            r#"{"rates":[{"probability":1.5,"fault":{"kind":"hang"}}]}"#,
            r#"{"rates":[{"probability":0.6,"fault":{"kind":"hang"}},{"probability":0.6,"fault":{"kind":"reset"}}]}"#,
            r#"{"rules":[{"match":"","fault":{"kind":"hang"}}]}"#,
            r#"{"rules":[{"match":"x","fault":{"kind":"hang","on":"token"}}]}"#,
        ] {
            assert!(serde_json::from_str::<FaultPlan>(text).unwrap().check().is_err(), "{text}");
        }
        assert!(serde_json::from_str::<FaultPlan>(r#"{"scrpt":[]}"#).is_err());
    }
}
