//! Multicast on IPv4, as nodefinder did it: a socket to send and another to receive, so that every system sends from the
//! right address.

use crate::Event;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 74, 74);
/// Below the ports that nodes listen on, so that it is shared by all nodes of a host and taken by none.
const PORT: u16 = 7473;
/// Beacons stay on the local network.
const TTL: u32 = 1;
/// How often interfaces are looked at anew.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The IPv4 addresses of all interfaces, loopback last.
pub(crate) fn interfaces() -> Vec<Ipv4Addr> {
    let all = if_addrs::get_if_addrs().unwrap_or_default();
    let mut v4: Vec<Ipv4Addr> = all
        .into_iter()
        .filter_map(|i| match i.ip() {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        })
        .collect();
    v4.sort_by_key(Ipv4Addr::is_loopback);
    v4
}

/// Sends beacons out of every interface.
pub(crate) struct Sender;

impl Sender {
    pub(crate) fn send(&self, bytes: &[u8]) {
        for ip in interfaces() {
            // An interface that cannot do multicast is no error: another may.
            let _ = send_from(ip, bytes);
        }
    }
}

fn send_from(ip: Ipv4Addr, bytes: &[u8]) -> std::io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket.bind(&SocketAddr::from((ip, 0)).into())?;
    socket.set_multicast_if_v4(&ip)?;
    socket.set_multicast_ttl_v4(TTL)?;
    socket.set_multicast_loop_v4(true)?;
    socket.set_nonblocking(true)?;
    socket.send_to(bytes, &SocketAddr::from((GROUP, PORT)).into())?;
    Ok(())
}

fn receiver() -> std::io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // Several nodes on one host all hear.
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((GROUP, PORT)).into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}

/// Listens for beacons for ever, on interfaces that come later too.
pub(crate) async fn receive(events: mpsc::Sender<Event>) {
    let socket = loop {
        match receiver() {
            Ok(socket) => break socket,
            Err(e) => {
                tracing::warn!("multicast cannot be received: {e}; nodes are found by --join alone until it can");
                tokio::time::sleep(LOOK_AGAIN * 6).await;
            }
        }
    };
    let (mut joined, mut buffer) = (BTreeSet::new(), vec![0; 65_536]);
    loop {
        for ip in interfaces() {
            if !joined.contains(&ip) && socket.join_multicast_v4(GROUP, ip).is_ok() {
                joined.insert(ip);
            }
        }
        let until = tokio::time::Instant::now() + LOOK_AGAIN;
        while let Ok(received) = tokio::time::timeout_at(until, socket.recv_from(&mut buffer)).await {
            match received {
                Ok((len, from)) if len <= base::DATAGRAM_BYTES_MAX => {
                    let _ = events.try_send(Event::Beacon(from, Bytes::copy_from_slice(&buffer[..len])));
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}
