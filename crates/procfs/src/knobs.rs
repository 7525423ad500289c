//! Knobs: files below `sys/` that take a write, check it, and are as they were if it makes no sense.

use crate::ProcError;
use crate::ask::Asker;
use base::NodeId;
use client::Outcome;
use node::{Question, Said};
use std::sync::Arc;

/// More than any value takes.
const VALUE_BYTES_MAX: usize = 4096;

/// Turns a knob of a node, or of the whole cluster.
pub(crate) async fn turn(asker: &Arc<Asker>, node: NodeId, knob: &str, value: &[u8]) -> Result<(), ProcError> {
    let value = std::str::from_utf8(value).ok().filter(|text| text.len() <= VALUE_BYTES_MAX).map(str::trim);
    let Some(value) = value else {
        tracing::warn!("{knob} was not set: what was written is no short text");
        return Err(ProcError::Invalid);
    };
    let turned = match knob {
        "balance" | "copy_rate" => turn_for_all(asker, knob, value).await,
        _ => match asker.ask(node, Question::Set(knob.into(), value.into())).await? {
            // The node has said why in its log.
            Said::Set(set) => set.map_err(|_| ProcError::Invalid),
            _ => Err(ProcError::Unavailable),
        },
    };
    asker.forget(node);
    turned
}

async fn turn_for_all(asker: &Arc<Asker>, knob: &str, value: &str) -> Result<(), ProcError> {
    let refuse = |why: &str| {
        tracing::warn!("{knob} was not set to {value:?}: {why}");
        Err(ProcError::Invalid)
    };
    let done = match (knob, value) {
        ("balance", "on") => asker.db().pause_balance(false).await,
        ("balance", "paused") => asker.db().pause_balance(true).await,
        ("balance", _) => return refuse("it is on or paused"),
        (_, "none") => asker.db().copy_rate(None).await,
        _ => match value.parse::<u64>() {
            Ok(rate) if rate >= node::COPY_RATE_MIN => asker.db().copy_rate(Some(rate)).await,
            _ => return refuse(&format!("it is none, or at least {} bytes a second", node::COPY_RATE_MIN)),
        },
    };
    match done {
        Ok(Outcome::Done { .. }) => {
            tracing::info!("{knob} was set to {value} for the whole cluster");
            Ok(())
        }
        _ => Err(ProcError::Unavailable),
    }
}
