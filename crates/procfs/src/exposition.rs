//! What is counted at nodes, as Prometheus reads it.

use base::NodeId;
use node::Sample;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Every name: how it grows, and what it says.
pub const FAMILIES: &[(&str, &str, &str)] = &[
    ("tombolo_nodes_in_view", "gauge", "Nodes that this one can talk to, itself among them."),
    ("tombolo_nodes_known", "gauge", "Nodes of the roster, itself among them."),
    ("tombolo_partitioned", "gauge", "1: nodes are out of reach that should be there."),
    (
        "tombolo_clock_barred",
        "gauge",
        "1: its clock is far off, or it is about to go; it leads nothing that others can lead.",
    ),
    ("tombolo_tables", "gauge", "Tables."),
    (
        "tombolo_shortage_level",
        "gauge",
        "How short the node is: 0 not, 1 bounded tables do not grow, 2 they make room, 3 writes are refused.",
    ),
    ("tombolo_conflicts_kept_bytes", "gauge", "Values that lost conflicts, as far as they lie here."),
    ("tombolo_table_copies", "gauge", "Copies of the table's fragments here."),
    ("tombolo_table_fragments_led", "gauge", "Fragments led here."),
    ("tombolo_table_in_sync_min", "gauge", "Of fragments led here, the fewest copies in sync."),
    ("tombolo_table_copies_wanted", "gauge", "Copies that each fragment is to have."),
    ("tombolo_table_records", "gauge", "Records in fragments led here."),
    ("tombolo_table_bytes", "gauge", "Bytes of their keys and values."),
    ("tombolo_table_uncommitted_entries", "gauge", "Entries that not every copy in sync has."),
    ("tombolo_table_evicted_total", "counter", "Records that had to go, as counted by copies here while they led."),
    ("tombolo_table_expired_total", "counter", "Records that had expired, counted alike."),
    ("tombolo_table_held_bytes", "gauge", "What counts for the bound."),
    ("tombolo_table_fullness_ratio", "gauge", "How full the fullest fragment is that is led here."),
    ("tombolo_table_reads_found_total", "counter", "Reads of one key that found a value."),
    ("tombolo_table_reads_missed_total", "counter", "Reads of one key that found none."),
    ("tombolo_table_oldest_seconds", "gauge", "Age of the oldest record."),
    ("tombolo_cpu_seconds_total", "counter", "Processor time of the process."),
    ("tombolo_memory_resident_bytes", "gauge", "Resident memory."),
    ("tombolo_memory_used_bytes", "gauge", "What of it is in use."),
    ("tombolo_memory_max_bytes", "gauge", "How much may be in use."),
    ("tombolo_disc_free_bytes", "gauge", "Free on the disc of the data directory."),
    (
        "tombolo_disc_used_bytes",
        "gauge",
        "What the data directory holds, its journal taken to be as large as it may be.",
    ),
    ("tombolo_starts_total", "counter", "How often the node was started."),
    ("tombolo_ops_waiting", "gauge", "Operations of clients under way."),
    ("tombolo_events_total", "counter", "Lines of `tombolo events`, by grade."),
    (
        "tombolo_op_seconds",
        "histogram",
        "How long operations took that went through the node; reads answered by a function call are not among them.",
    ),
    ("tombolo_conflicts_kept", "gauge", "Values that lost conflicts, as far as they lie here."),
    ("tombolo_swim_suspicions_total", "counter", "How often gossip said that a node is gone."),
    ("tombolo_peers_given_up_total", "counter", "How often one was unlinked because it did not answer."),
    ("tombolo_peers", "gauge", "Nodes that were met since the start, by the state of the link to them."),
    (
        "tombolo_peer_rtt_seconds",
        "gauge",
        "How long a peer took to answer, asked when somebody looks, at most once a second.",
    ),
    ("tombolo_peer_bytes_total", "counter", "Bytes of frames, each way, since the link to the peer stands."),
    ("tombolo_foreign_senders", "gauge", "Nodes of other secrets or groups that were heard."),
    ("tombolo_providers_failing", "gauge", "Lists of nodes that cannot be read."),
    ("tombolo_clock_ahead_seconds", "gauge", "How far its clock is ahead of the others' median; below 0: behind."),
    ("tombolo_heals_total", "counter", "Fragments in which islands met, as counted by whoever leads then."),
    ("tombolo_heal_records_total", "counter", "Records taken over when islands met (in), and entries given (out)."),
    ("tombolo_heal_conflicts_total", "counter", "Keys that were written on both sides."),
    ("tombolo_heal_seconds_total", "counter", "How long it took from when islands saw each other, over all fragments."),
    ("tombolo_heal_staged_records", "gauge", "While islands meet: records of the other side that are here."),
    ("tombolo_heal_records", "gauge", "While islands meet: about how many there are to come."),
    ("tombolo_table_lag_entries_max", "gauge", "Of fragments led here, the most entries that a copy in sync lacks."),
    ("tombolo_table_fragments_short", "gauge", "Of fragments led here, those with fewer copies in sync than wanted."),
    ("tombolo_table_fragments_unled", "gauge", "Fragments that nobody leads, as this node sees it."),
    ("tombolo_datagrams_total", "counter", "Datagrams between nodes: gossip, and calls to those not met yet."),
    ("tombolo_beacons_total", "counter", "Multicast calls."),
    ("tombolo_frames_total", "counter", "Messages on links."),
    ("tombolo_dials_total", "counter", "Connections that were tried."),
    ("tombolo_dials_failed_total", "counter", "And failed."),
    ("tombolo_links_total", "counter", "Links that came to stand."),
    ("tombolo_links_lost_total", "counter", "Links that went."),
    ("tombolo_slow_requests_total", "counter", "Requests of this node's clients that took sys/slow_ms or longer."),
    ("tombolo_disc_batches_total", "counter", "Batches written to disc."),
    ("tombolo_disc_written_bytes_total", "counter", "Their bytes."),
    ("tombolo_disc_flushes_total", "counter", "Flushes."),
    ("tombolo_disc_write_seconds_total", "counter", "Time spent writing and flushing."),
    ("tombolo_disc_queued_bytes", "gauge", "What waits to be written."),
    ("tombolo_fuse_calls_total", "counter", "Calls of the kernel to a mounted filesystem, by kind."),
    ("tombolo_fuse_seconds_total", "counter", "How long they took together."),
    ("tombolo_info", "gauge", "1, with the node's version."),
];

/// The family that a sample belongs to.
fn family(name: &str) -> &str {
    let plain = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
    plain.filter(|plain| FAMILIES.iter().any(|(name, kind, _)| name == plain && *kind == "histogram")).unwrap_or(name)
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The text form (version 0.0.4), each family in one place.
pub fn text(nodes: &BTreeMap<NodeId, (String, Vec<Sample>)>) -> String {
    // Of nodes of one name the ids tell.
    let alone = |name: &String| nodes.values().filter(|(other, _)| other == name).count() == 1;
    let shown = |id: &NodeId, name: &String| if alone(name) { name.clone() } else { format!("{name}@{id}") };
    let mut text = String::new();
    for &(name, kind, help) in FAMILIES {
        let mut lines = String::new();
        for (id, (name_of, samples)) in nodes {
            let node = escaped(&shown(id, name_of));
            for sample in samples.iter().filter(|sample| family(&sample.name) == name) {
                let labels = sample.labels.iter().map(|(label, value)| format!(",{label}=\"{}\"", escaped(value)));
                let labels: String = labels.collect();
                let _ = writeln!(lines, "{}{{node=\"{}\"{labels}}} {}", sample.name, node, sample.value);
            }
        }
        if !lines.is_empty() {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_is_told_in_one_place() {
        let samples = |n: u64| {
            vec![
                Sample::new("tombolo_op_seconds_bucket", n).of("op", "read").of("le", "0.1"),
                Sample::new("tombolo_nodes_in_view", n),
                Sample::new("tombolo_op_seconds_count", n).of("op", "read"),
                Sample::new("tombolo_table_records", n).of("table", "a\"b\\c\nd"),
            ]
        };
        let text =
            text(&BTreeMap::from([(NodeId(1), ("n1".into(), samples(1))), (NodeId(2), ("n2".into(), samples(2)))]));
        let expected = "# HELP tombolo_nodes_in_view Nodes that this one can talk to, itself among them.\n\
            # TYPE tombolo_nodes_in_view gauge\n\
            tombolo_nodes_in_view{node=\"n1\"} 1\ntombolo_nodes_in_view{node=\"n2\"} 2\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("{node=\"n1\",table=\"a\\\"b\\\\c\\nd\"} 1\n"), "{text}");
        assert!(text.contains("tombolo_op_seconds_bucket{node=\"n2\",op=\"read\",le=\"0.1\"} 2\n"), "{text}");
        assert_eq!(text.matches("# TYPE tombolo_op_seconds histogram").count(), 1);
    }
}
