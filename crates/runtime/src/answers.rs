//! What a node's process says when it, or another node, asks.

use crate::host::Setting;
use crate::shell::{Shell, Wake, vitals};
use base::Span;
use node::{EventMark, Fact, Facts, Grade, Happened, Input, Question, Said, Sample, Subject, Vitals};
use std::time::{Duration, Instant};

/// The load is that of at least so long.
const LOAD_OVER: Duration = Duration::from_secs(1);

/// More than any knob takes, its name included.
const SET_BYTES_MAX: usize = 4096;

/// The process' load, measured from one look to another.
pub(crate) struct Load {
    /// Processor time at two moments, the older first.
    seen: [(Instant, u64); 2],
}

impl Load {
    pub(crate) fn new() -> Load {
        Load { seen: [(Instant::now(), 0); 2] }
    }

    /// In shares of one processor, over the last second or two, or since it was last asked for.
    fn over(&mut self, now: Instant, cpu_us: u64) -> f64 {
        let [older, newer] = self.seen;
        if now - newer.0 >= LOAD_OVER {
            self.seen = [newer, (now, cpu_us)];
        }
        let from = if now - newer.0 >= LOAD_OVER { newer } else { older };
        let micros = (now - from.0).as_micros().max(1) as f64;
        (cpu_us.saturating_sub(from.1) as f64 / micros * 1000.0).round() / 1000.0
    }
}

impl Shell {
    pub(crate) fn answer(&mut self, question: &Question) -> Said {
        match question {
            Question::Vitals => Said::Vitals(vitals(&self.watch)),
            Question::Events(since, most) => {
                let after = since.get(&self.handle.me).copied().unwrap_or_default();
                Said::Events(self.journal.since(after, *most))
            }
            Question::Metrics => {
                self.probe();
                Said::Metrics(self.metrics())
            }
            Question::Facts(subject) => Said::Facts(self.facts(subject)),
            Question::Log(after, most) => Said::Events(self.log_since(*after, *most)),
            Question::Set(knob, value) => Said::Set(self.set(knob, value)),
            Question::Record(fragment, key) => Said::Record(self.handle.get_here(*fragment, key).flatten()),
        }
    }

    /// Lines of this start of the node: the program does not know which it is.
    fn log_since(&self, after: EventMark, most: u32) -> Vec<Happened> {
        let incarnation = self.handle.incarnation;
        let number = if after.incarnation == incarnation { after.number } else { 0 };
        let mut lines = self.host.log(number, most);
        lines.iter_mut().for_each(|line| line.mark.incarnation = incarnation);
        lines
    }

    /// What is told of peers' answers is measured for whoever asks next.
    fn probe(&self) {
        let _ = self.handle.wake.send(Wake::Input(Input::Probe));
    }

    fn facts(&mut self, subject: &Subject) -> Vec<Fact> {
        let mut all = self.node.facts(self.clock.now(), subject);
        if *subject == Subject::Node {
            self.probe();
            self.facts_of_process(&mut all);
            self.host.facts(&mut all);
        }
        all.all
    }

    fn facts_of_process(&mut self, all: &mut Facts) {
        let vitals: Vitals = vitals(&self.watch);
        all.put("version", env!("CARGO_PKG_VERSION"));
        all.put("cpu", vitals.cpu_us as f64 / 1e6);
        all.put("load", self.load.over(Instant::now(), vitals.cpu_us));
        all.below(&["memory"], |all| {
            all.put("resident", vitals.resident_bytes);
            all.put("used", vitals.used_bytes);
            all.put("max", vitals.memory_max);
            all.put("short", format!("{:?}", vitals.shortage.memory).to_lowercase());
        });
        all.below(&["disc"], |all| {
            all.put("free", self.dir.free_bytes());
            all.put("used", self.disc.used_bytes());
            all.put("max", self.watch.ceilings.disc);
            all.put("short", format!("{:?}", vitals.shortage.disc).to_lowercase());
        });
        for (name, link) in self.node.links() {
            let Some((sent, received)) = self.transport.traffic(link) else { continue };
            all.below(&["peers", &name], |all| {
                all.put("bytes", sent + received);
                all.put("bytes_in", received);
                all.put("bytes_out", sent);
            });
        }
        let size = |max: Option<u64>| max.map_or("none".to_string(), |bytes| bytes.to_string());
        all.below(&["sys"], |all| {
            all.put("memory_max", size(self.watch.ceilings.memory));
            all.put("disc_max", size(self.watch.ceilings.disc));
            all.put("slow_ms", self.counts.slow.after.as_ms());
        });
    }

    fn metrics(&self) -> Vec<Sample> {
        let vitals = vitals(&self.watch);
        let mut all = self.node.metrics(self.clock.now());
        all.push(Sample::new("tombolo_info", 1.0).of("version", env!("CARGO_PKG_VERSION")));
        all.push(Sample::new("tombolo_cpu_seconds_total", vitals.cpu_us as f64 / 1e6));
        all.push(Sample::new("tombolo_memory_resident_bytes", vitals.resident_bytes));
        all.push(Sample::new("tombolo_memory_used_bytes", vitals.used_bytes));
        all.extend(vitals.memory_max.map(|max| Sample::new("tombolo_memory_max_bytes", max)));
        all.extend(self.dir.free_bytes().map(|free| Sample::new("tombolo_disc_free_bytes", free)));
        all.push(Sample::new("tombolo_disc_used_bytes", self.disc.used_bytes()));
        all.push(Sample::new("tombolo_starts_total", self.handle.incarnation));
        all.push(Sample::new("tombolo_ops_waiting", self.clients.len()));
        self.journal.counts().for_each(|(grade, kind, n)| {
            all.push(Sample::new("tombolo_events_total", n).of("grade", grade).of("kind", kind))
        });
        self.meter.tell(&mut all);
        self.counts.tell(&mut all);
        let written = self.writer.written();
        all.push(Sample::new("tombolo_disc_batches_total", written.batches));
        all.push(Sample::new("tombolo_disc_written_bytes_total", written.bytes));
        all.push(Sample::new("tombolo_disc_flushes_total", written.flushes));
        all.push(Sample::new("tombolo_disc_write_seconds_total", written.seconds));
        all.push(Sample::new("tombolo_disc_queued_bytes", written.queued_bytes));
        for (name, link) in self.node.links() {
            let Some((sent, received)) = self.transport.traffic(link) else { continue };
            let of =
                |bytes, way| Sample::new("tombolo_peer_bytes_total", bytes).of("peer", name.clone()).of("way", way);
            all.extend([of(sent, "out"), of(received, "in")]);
        }
        self.host.metrics(&mut all);
        all
    }

    /// Turns a knob of this node, and says so.
    fn set(&mut self, knob: &str, value: &str) -> Result<(), String> {
        if knob.len() + value.len() > SET_BYTES_MAX {
            return Err("no knob takes so much".into());
        }
        let set = self.host.set(knob, value);
        let line = match &set {
            Ok(_) => (Grade::Info, "set", format!("{knob} was set to {value}")),
            Err(why) => (Grade::Warn, "set", format!("{knob} was not set to {value:?}: {why}")),
        };
        self.note(line);
        match set? {
            Setting::MemoryMax(max) => self.watch.ceilings.memory = max,
            Setting::DiscMax(max) => self.watch.ceilings.disc = max,
            Setting::SlowAfter(span) => self.slow_after(span),
            Setting::Done => {}
        }
        Ok(())
    }

    fn slow_after(&mut self, span: Span) {
        self.counts.slow.after = span;
        let _ = self.handle.wake.send(Wake::Input(Input::SlowAfter(span)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_of_the_last_second_or_two() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut load = Load { seen: [(begun, 0); 2] };
        assert_eq!(load.over(at(500), 250_000), 0.5, "since the start");
        assert_eq!(load.over(at(1000), 500_000), 0.5);
        assert_eq!(load.over(at(1500), 500_000), 0.333, "one that looks often sees more than a moment");
        assert_eq!(load.over(at(3000), 2_500_000), 1.0, "since 1000");
        assert_eq!(load.over(at(3100), 2_500_000), 0.952, "still since 1000");
    }
}
