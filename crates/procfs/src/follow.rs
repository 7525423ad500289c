//! Texts that grow: a node's log and its events, one line each, for `tail -f`.

use crate::ProcError;
use crate::ask::Asker;
use base::NodeId;
use node::{EventMark, Happened, Question, Said};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A text that is longer begins anew with what came last, as a log that is rotated does.
const BYTES_MAX: usize = 1 << 20;
/// So many lines are asked for at once.
const LINES_MAX: u32 = 2000;
/// One that nobody looked at for so long is forgotten, and begins anew when somebody does.
const FORGET: Duration = Duration::from_secs(600);
/// The last moment that can be written as a time.
const TIME_MAX_MS: u64 = 253_402_300_799_999;
/// It is asked for more after so long.
const FRESH: Duration = Duration::from_millis(100);

/// Which text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Text {
    Log,
    Events,
}

pub(crate) struct Growing {
    pub lines: Vec<u8>,
    mark: EventMark,
    asked: Option<Instant>,
    /// When its last line was written.
    pub since: SystemTime,
}

/// All texts that were looked at.
#[derive(Default)]
pub(crate) struct Texts(Mutex<HashMap<(NodeId, Text), Growing>>);

fn moment(event: &Happened) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(event.at.0.min(TIME_MAX_MS))
}

fn line(event: &Happened) -> String {
    let time = humantime::format_rfc3339_millis(moment(event));
    let line = format!("{time} {} {} {}", event.grade.name(), event.kind, event.text);
    // Names and reasons come from anywhere.
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).chain(['\n']).collect()
}

impl Growing {
    fn new() -> Growing {
        Growing { lines: Vec::new(), mark: EventMark::default(), asked: None, since: UNIX_EPOCH }
    }

    fn grow(&mut self, more: &[Happened]) {
        let before = self.lines.len();
        // Two who looked at once may have been told the same.
        for event in more.iter().filter(|event| event.mark > self.mark).collect::<Vec<_>>() {
            self.mark = event.mark;
            self.lines.extend_from_slice(line(event).as_bytes());
            self.since = moment(event);
        }
        if self.lines.len() > BYTES_MAX {
            // Not a part of what was there: whoever follows it would be told the same again.
            self.lines.drain(..before);
        }
    }
}

impl Texts {
    fn with<R>(&self, node: NodeId, text: Text, look: impl FnOnce(&mut Growing) -> R) -> R {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains_key(&(node, text)) {
            all.retain(|_, growing| growing.asked.is_some_and(|asked| asked.elapsed() < FORGET));
        }
        look(all.entry((node, text)).or_insert_with(Growing::new))
    }

    /// Looks at the text with all that there is by now.
    pub(crate) async fn look<R>(
        &self,
        asker: &Arc<Asker>,
        (node, text): (NodeId, Text),
        look: impl FnOnce(&Growing) -> R,
    ) -> Result<R, ProcError> {
        let (mark, fresh) = self.with(node, text, |t| (t.mark, t.asked.is_some_and(|asked| asked.elapsed() < FRESH)));
        if !fresh {
            let question = match text {
                Text::Log => Question::Log(mark, LINES_MAX),
                Text::Events => Question::Events(BTreeMap::from([(node, mark)]), LINES_MAX),
            };
            let asked = Instant::now();
            if let Said::Events(more) = asker.ask(node, question).await? {
                self.with(node, text, |t| {
                    t.grow(&more);
                    t.asked = Some(asked);
                });
            }
        }
        Ok(self.with(node, text, |t| look(t)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::WallMs;
    use node::Grade;

    fn event(number: u64, text: &str) -> Happened {
        let mark = EventMark { incarnation: 1, number };
        Happened { mark, at: WallMs(number * 1000), grade: Grade::Warn, kind: "test".into(), text: text.into() }
    }

    #[test]
    fn a_text_grows_by_what_is_new_and_stays_within_bounds() {
        let mut text = Growing::new();
        text.grow(&[event(1, "a\nb"), event(2, "c")]);
        text.grow(&[event(2, "c"), event(3, "d")]);
        let lines = String::from_utf8(text.lines.clone()).unwrap();
        let expected = "1970-01-01T00:00:01.000Z warn test a b\n1970-01-01T00:00:02.000Z warn test c\n\
                        1970-01-01T00:00:03.000Z warn test d\n";
        assert_eq!((lines.as_str(), text.since), (expected, UNIX_EPOCH + Duration::from_secs(3)));
        for n in 4..40 {
            text.grow(&[event(n, &"x".repeat(60_000))]);
            assert!(text.lines.len() <= BYTES_MAX);
            assert!(text.lines.starts_with(b"1970-"), "it begins with a whole line");
        }
    }
}
