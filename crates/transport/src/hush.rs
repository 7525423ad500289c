//! Log lines that anybody on the network can cause, kept to one a minute for each cause.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(60);

/// Counts what is not said.
#[derive(Default)]
pub struct Hush {
    causes: Mutex<HashMap<&'static str, (Instant, u64)>>,
}

impl Hush {
    /// May it be said now? Then with how many of the same cause were left unsaid since the last.
    pub fn may_say(&self, cause: &'static str) -> Option<u64> {
        self.may_say_at(cause, Instant::now())
    }

    fn may_say_at(&self, cause: &'static str, now: Instant) -> Option<u64> {
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        match causes.get_mut(cause) {
            Some((last, unsaid)) if now - *last < EVERY => {
                *unsaid += 1;
                None
            }
            said => {
                let unsaid = said.map_or(0, |(_, unsaid)| *unsaid);
                causes.insert(cause, (now, 0));
                Some(unsaid)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_for_each_cause() {
        let (hush, start) = (Hush::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(hush.may_say_at("a", at(0)), Some(0));
        assert_eq!((hush.may_say_at("a", at(1)), hush.may_say_at("a", at(59))), (None, None));
        assert_eq!(hush.may_say_at("b", at(59)), Some(0));
        assert_eq!(hush.may_say_at("a", at(60)), Some(2));
    }
}
