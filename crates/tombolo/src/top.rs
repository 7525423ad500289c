//! `tombolo top`: nodes, islands, tables, rates, latencies and heals, live.

use crate::commands::{Usage, ask_on, connect, done};
use crate::control::{Ask, Told};
use crate::text::bytes_text;
use anyhow::Result;
use base::NodeId;
use node::{Happened, Sample, Status};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Table};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

/// So many events are shown.
const EVENTS: u32 = 8;
/// The least time between two looks.
const EVERY_MIN: Duration = Duration::from_millis(100);

type Metrics = BTreeMap<NodeId, (String, Vec<Sample>)>;

/// The cluster at one moment.
struct Look {
    at: Instant,
    status: Box<Status>,
    metrics: Metrics,
    events: Vec<(String, Happened)>,
}

/// What is shown: some lines, and tables.
struct Page {
    head: Vec<String>,
    tables: Vec<Grid>,
    events: Vec<String>,
}

/// One table of it.
struct Grid {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    /// Rows that somebody should look at.
    odd: Vec<bool>,
}

async fn look(stream: &mut UnixStream) -> Result<Result<Look, Told>> {
    let at = Instant::now();
    let status = match ask_on(stream, &Ask::Status).await? {
        Told::Status(status) => status,
        other => return Ok(Err(other)),
    };
    let metrics = match ask_on(stream, &Ask::Metrics).await? {
        Told::Metrics(all) => all,
        other => return Ok(Err(other)),
    };
    let events = match ask_on(stream, &Ask::Events(BTreeMap::new(), EVENTS)).await? {
        Told::Events(told) => told,
        other => return Ok(Err(other)),
    };
    let each = events.into_values().flat_map(|(name, all)| all.into_iter().map(move |event| (name.clone(), event)));
    let mut events: Vec<(String, Happened)> = each.collect();
    events.sort_by_key(|(_, event)| event.at);
    events.drain(..events.len().saturating_sub(EVENTS as usize));
    Ok(Ok(Look { at, status, metrics, events }))
}

/// The sum of a node's samples of this name that have all of these labels.
fn sum(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |s: &&Sample| {
        s.name == name && labels.iter().all(|(label, value)| s.labels.iter().any(|(l, v)| l == label && v == value))
    };
    samples.iter().filter(has).map(|s| s.value).sum()
}

/// Below which most of the operations of a kind were, in ms: of those between two looks. `None`: there were none.
fn quantile(before: &[Sample], now: &[Sample], op: &str, most: f64) -> Option<f64> {
    let buckets = |samples: &[Sample]| -> Vec<(f64, f64)> {
        let of =
            |s: &&Sample| s.name == "tombolo_op_seconds_bucket" && s.labels.iter().any(|(l, v)| l == "op" && v == op);
        let bound = |s: &Sample| {
            let le = s.labels.iter().find(|(l, _)| l == "le").map_or("", |(_, v)| v.as_str());
            if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap_or(0.0) }
        };
        samples.iter().filter(of).map(|s| (bound(s), s.value)).collect()
    };
    let (before, now) = (buckets(before), buckets(now));
    let counts: Vec<(f64, f64)> =
        now.iter().enumerate().map(|(i, (bound, n))| (*bound, n - before.get(i).map_or(0.0, |(_, n)| *n))).collect();
    let all = counts.last().map(|(_, n)| *n).filter(|n| *n > 0.0)?;
    let mut below = (0.0, 0.0);
    for (bound, n) in counts {
        if n >= all * most {
            if bound.is_infinite() {
                return Some(below.0 * 1000.0);
            }
            // Within a bucket they are taken to lie evenly.
            let part = (all * most - below.1) / (n - below.1).max(f64::MIN_POSITIVE);
            return Some((below.0 + (bound - below.0) * part) * 1000.0);
        }
        below = (bound, n);
    }
    None
}

fn ms(what: Option<f64>) -> String {
    what.map_or("-".into(), |ms| if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") })
}

fn bytes(n: f64) -> String {
    bytes_text(n.max(0.0) as u64)
}

fn nodes(before: &Look, now: &Look) -> Grid {
    let seconds = (now.at - before.at).as_secs_f64().max(0.001);
    let (mut rows, mut odd) = (Vec::new(), Vec::new());
    for line in &now.status.nodes {
        let id = now.metrics.iter().find(|(node, _)| node.to_string() == line.id).map(|(node, _)| *node);
        let samples = |look: &Look| id.and_then(|id| look.metrics.get(&id).map(|(_, all)| all.clone()));
        let then = samples(before).unwrap_or_default();
        let Some(all) = samples(now) else {
            rows.push([vec![line.name.clone(), line.verdict.clone()], vec!["-".into(); 9]].concat());
            odd.push(true);
            continue;
        };
        let rate = |name: &str, labels: &[(&str, &str)]| {
            (sum(&all, name, labels) - sum(&then, name, labels)).max(0.0) / seconds
        };
        let count = |op| rate("tombolo_op_seconds_count", &[("op", op)]);
        let short = all.iter().filter(|s| s.name == "tombolo_shortage_level").any(|s| s.value > 0.0);
        rows.push(vec![
            line.name.clone(),
            if short { "short".into() } else { line.verdict.clone() },
            format!("{:.0} %", rate("tombolo_cpu_seconds_total", &[]) * 100.0),
            bytes(sum(&all, "tombolo_memory_resident_bytes", &[])),
            format!("{:.0}", sum(&all, "tombolo_table_copies", &[])),
            format!("{:.0}", sum(&all, "tombolo_table_fragments_led", &[])),
            format!("{:.0}", count("read")),
            format!("{:.0}", count("write")),
            ms(quantile(&then, &all, "read", 0.99)),
            ms(quantile(&then, &all, "write", 0.99)),
            format!("{}/s", bytes(rate("tombolo_peer_bytes_total", &[("way", "out")]))),
        ]);
        odd.push(short);
    }
    let header = vec![
        "NODE",
        "STATE",
        "CPU",
        "MEMORY",
        "COPIES",
        "LEADS",
        "READS/s",
        "WRITES/s",
        "READ p99",
        "WRITE p99",
        "SENT",
    ];
    Grid { header, rows, odd }
}

fn tables(now: &Look) -> Grid {
    let (mut rows, mut odd) = (Vec::new(), Vec::new());
    for table in &now.status.tables {
        let of = [("table", table.name.as_str())];
        let all = |name: &str| now.metrics.values().map(|(_, samples)| sum(samples, name, &of)).sum::<f64>();
        let ill = table.led < table.fragments || table.in_sync < table.copies;
        rows.push(vec![
            table.name.clone(),
            format!("{}/{}", table.led, table.fragments),
            format!("{}/{}", table.in_sync, table.copies),
            format!("{:.0}", all("tombolo_table_records")),
            bytes(all("tombolo_table_bytes")),
            format!("{:.0}", all("tombolo_table_uncommitted_entries")),
            format!("{:.0}", all("tombolo_table_evicted_total")),
            table.storage.clone(),
        ]);
        odd.push(ill);
    }
    let header = vec!["TABLE", "LED", "IN SYNC", "RECORDS", "BYTES", "UNDER WAY", "EVICTED", "STORAGE"];
    Grid { header, rows, odd }
}

fn page(before: &Look, now: &Look) -> Page {
    let s = &now.status;
    let mut head = vec![
        format!("{} of group {}: {} ({})", s.node, s.group, s.state, s.why),
        format!("in this island: {}", s.island.join(", ")),
    ];
    if !s.missing.is_empty() {
        head.push(format!("missing: {}", s.missing.join(", ")));
    }
    let heals: f64 = now.metrics.values().map(|(_, all)| sum(all, "tombolo_heals_total", &[])).sum();
    head.push(match s.healing {
        Some((staged, of)) => format!("islands meet: {staged} of about {of} records are here"),
        None => format!(
            "heals: {heals:.0} of fragments since the nodes started; {} losing values are kept here",
            s.conflicts
        ),
    });
    let event = |(name, event): &(String, Happened)| {
        let line = format!("{}  {name}  {}", crate::conflicts::time(event.at), event.text);
        line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    };
    Page { head, tables: vec![nodes(before, now), tables(now)], events: now.events.iter().map(event).collect() }
}

impl Grid {
    fn widths(&self) -> Vec<usize> {
        let cell = |row: &[String], i: usize| row.get(i).map_or(0, |text| text.chars().count());
        let width =
            |i: usize| self.rows.iter().map(|row| cell(row, i)).chain([self.header[i].len()]).max().unwrap_or(0);
        (0..self.header.len()).map(width).collect()
    }

    fn lines(&self) -> Vec<String> {
        let widths = self.widths();
        let line = |cells: Vec<&str>| {
            let cells = cells.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
        };
        let rows = self.rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
        [line(self.header.clone())].into_iter().chain(rows).collect()
    }
}

fn print(page: &Page) {
    page.head.iter().for_each(|line| println!("{line}"));
    for grid in page.tables.iter().filter(|grid| !grid.rows.is_empty()) {
        println!();
        grid.lines().iter().for_each(|line| println!("{line}"));
    }
    if !page.events.is_empty() {
        println!();
        page.events.iter().for_each(|line| println!("{line}"));
    }
}

fn draw(frame: &mut ratatui::Frame<'_>, page: &Page) {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let rows = |grid: &Grid| Constraint::Length(grid.rows.len() as u16 + 2);
    let head = Constraint::Length(page.head.len() as u16 + 1);
    let grids = page.tables.iter().map(rows);
    let areas = Layout::vertical([head].into_iter().chain(grids).chain([Constraint::Fill(1), Constraint::Length(1)]));
    let areas = areas.split(frame.area());
    let lines: Vec<Line<'_>> = page.head.iter().map(|line| Line::from(line.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).style(bold), areas[0]);
    for (grid, area) in page.tables.iter().zip(areas.iter().skip(1)) {
        let row = |(row, odd): (&Vec<String>, &bool)| {
            let style = if *odd { Style::new().fg(Color::Yellow) } else { Style::new() };
            Row::new(row.iter().cloned()).style(style)
        };
        let widths = grid.widths().into_iter().map(|width| Constraint::Length(width as u16));
        let table = Table::new(grid.rows.iter().zip(&grid.odd).map(row), widths).column_spacing(2);
        frame.render_widget(table.header(Row::new(grid.header.clone()).style(bold.fg(Color::Cyan))), *area);
    }
    let last = areas.len() - 2;
    let events: Vec<Line<'_>> = page.events.iter().rev().map(|line| Line::from(line.as_str())).collect();
    frame.render_widget(Paragraph::new(events).block(Block::new().title("events, the latest first")), areas[last]);
    frame.render_widget(Paragraph::new("q: quit"), areas[last + 1]);
}

/// Waits for so long, or until somebody has had enough (`true`).
async fn enough(wait: Duration) -> Result<bool> {
    let until = Instant::now() + wait;
    let asked = move || -> std::io::Result<bool> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if !event::poll(left)? {
                return Ok(false);
            }
            match event::read()? {
                Event::Key(key) if matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) => return Ok(true),
                Event::Key(key) if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) => {
                    return Ok(true);
                }
                // The page is drawn anew.
                Event::Resize(..) => return Ok(false),
                _ => {}
            }
        }
    };
    Ok(tokio::task::spawn_blocking(asked).await??)
}

/// Shows it until somebody has had enough.
async fn watch(stream: &mut UnixStream, every: Duration, mut before: Look) -> Result<u8> {
    let mut terminal = ratatui::try_init()?;
    let ended = loop {
        let now = match look(stream).await {
            Ok(Ok(now)) => now,
            Ok(Err(told)) => break done(told, None),
            Err(e) => break Err(e),
        };
        let page = page(&before, &now);
        if let Err(e) = terminal.draw(|frame| draw(frame, &page)) {
            break Err(e.into());
        }
        before = now;
        match enough(every).await {
            Ok(false) => {}
            Ok(true) => break Ok(0),
            Err(e) => break Err(e),
        }
    };
    ratatui::restore();
    ended
}

/// `top`.
pub(crate) async fn run(data: &Path, once: bool, every: &str) -> Result<u8> {
    let every = Duration::from_millis(crate::text::duration_ms(every).map_err(Usage)?).max(EVERY_MIN);
    if !once && !std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        return Err(Usage("what is printed to is no terminal; print it once with --once".into()).into());
    }
    let mut stream = connect(data).await?;
    let before = match look(&mut stream).await? {
        Ok(before) => before,
        Err(told) => return done(told, None),
    };
    if !once {
        return watch(&mut stream, every, before).await;
    }
    tokio::time::sleep(every).await;
    match look(&mut stream).await? {
        Ok(now) => print(&page(&before, &now)),
        Err(told) => return done(told, None),
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(counts: [u64; 3]) -> Vec<Sample> {
        let bounds = ["0.001", "0.01", "+Inf"];
        let bucket = |(n, le): (u64, &str)| Sample::new("tombolo_op_seconds_bucket", n).of("op", "read").of("le", le);
        counts.into_iter().zip(bounds).map(bucket).collect()
    }

    #[test]
    fn quantiles_are_of_what_was_between_two_looks() {
        let (before, now) = (buckets([100, 100, 100]), buckets([150, 200, 200]));
        assert_eq!(quantile(&before, &now, "read", 0.5), Some(1.0));
        assert_eq!(quantile(&before, &now, "read", 0.75).map(|ms| (ms * 10.0).round()), Some(55.0));
        assert_eq!(quantile(&now, &now, "read", 0.5), None, "there were none");
        assert_eq!(quantile(&before, &now, "write", 0.5), None);
        assert_eq!(quantile(&[], &buckets([0, 0, 5]), "read", 0.99), Some(10.0), "above all bounds");
    }

    #[test]
    fn a_grid_is_as_wide_as_what_is_in_it() {
        let grid = Grid { header: vec!["A", "LONG"], rows: vec![vec!["abc".into(), "x".into()]], odd: vec![false] };
        assert_eq!(grid.lines(), ["A    LONG", "abc  x"]);
    }
}
