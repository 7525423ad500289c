//! Multicast on IPv4 and IPv6, on every interface, as nodefinder did it: a socket to send and another to receive, so that
//! every system sends from the right address.

use crate::Event;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 74, 74);
/// Of the link that it is sent on: `ff02::7474`.
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x7474);
/// Below the ports that nodes listen on, so that it is shared by all nodes of a host and taken by none.
const PORT: u16 = 7473;
/// Beacons stay on the local network.
const TTL: u32 = 1;
/// How often interfaces are looked at anew.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long a call of our own may take to come back.
const ECHO_WAIT: Duration = Duration::from_millis(500);

/// Where beacons are sent from: an address of IPv4, or an interface of IPv6 by its index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Way {
    V4(Ipv4Addr),
    V6(u32),
}

/// The addresses of all interfaces that others on some network could use, best first: those of IPv4, then global ones of
/// IPv6, then loopback.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let all = if_addrs::get_if_addrs().unwrap_or_default().into_iter().map(|i| i.ip());
    let mut all: Vec<IpAddr> = all.filter(|ip| !link_local(ip)).collect();
    all.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6()));
    all
}

/// Every way out; an interface of IPv6 has one, however many addresses it has.
fn ways() -> BTreeSet<Way> {
    let way = |i: if_addrs::Interface| match i.ip() {
        IpAddr::V4(ip) => Some(Way::V4(ip)),
        IpAddr::V6(_) => i.index.map(Way::V6),
    };
    if_addrs::get_if_addrs().unwrap_or_default().into_iter().filter_map(way).collect()
}

/// Sends beacons out of every interface; on IPv6 only where an answer can come back by it.
pub(crate) struct Sender {
    pub v6: bool,
}

impl Sender {
    pub(crate) fn send(&self, bytes: &[u8]) {
        for way in ways().into_iter().filter(|way| self.v6 || matches!(way, Way::V4(_))) {
            // An interface that cannot do multicast is no error: another may.
            let _ = send_by(way, bytes);
        }
    }
}

fn send_by(way: Way, bytes: &[u8]) -> std::io::Result<()> {
    let domain = if matches!(way, Way::V4(_)) { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    let to: SocketAddr = match way {
        Way::V4(ip) => {
            socket.bind(&SocketAddr::from((ip, 0)).into())?;
            socket.set_multicast_if_v4(&ip)?;
            socket.set_multicast_ttl_v4(TTL)?;
            socket.set_multicast_loop_v4(true)?;
            (GROUP, PORT).into()
        }
        Way::V6(index) => {
            socket.set_multicast_if_v6(index)?;
            socket.set_multicast_hops_v6(TTL)?;
            socket.set_multicast_loop_v6(true)?;
            SocketAddrV6::new(GROUP_V6, PORT, 0, index).into()
        }
    };
    socket.send_to(bytes, &to.into())?;
    Ok(())
}

/// A socket that hears one of the two groups, once it has joined it on an interface.
fn receiver(v6: bool) -> std::io::Result<UdpSocket> {
    let domain = if v6 { socket2::Domain::IPV6 } else { socket2::Domain::IPV4 };
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
    // Several nodes on one host all hear.
    socket.set_reuse_address(true)?;
    let addr: SocketAddr = if v6 {
        socket.set_only_v6(true)?;
        // A socket bound to the group itself would be of one interface.
        (Ipv6Addr::UNSPECIFIED, PORT).into()
    } else {
        (GROUP, PORT).into()
    };
    socket.bind(&addr.into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}

/// Joins the group on ways that it has not been joined on.
fn join(socket: &UdpSocket, v6: bool, joined: &mut BTreeSet<Way>) {
    let now = ways();
    // One that went and comes back is joined anew.
    joined.retain(|way| now.contains(way));
    for way in now {
        let done = match way {
            _ if joined.contains(&way) => continue,
            Way::V4(ip) if !v6 => socket.join_multicast_v4(GROUP, ip),
            Way::V6(index) if v6 => socket.join_multicast_v6(&GROUP_V6, index),
            _ => continue,
        };
        if done.is_ok() {
            joined.insert(way);
        }
    }
}

/// Listens for beacons for ever, on interfaces that come later too.
pub(crate) async fn receive(v6: bool, events: mpsc::Sender<Event>) {
    let socket = loop {
        match receiver(v6) {
            Ok(socket) => break socket,
            // A system without IPv6 has nothing to warn of.
            Err(e) if v6 => tracing::debug!("multicast of IPv6 cannot be received: {e}"),
            Err(e) => tracing::warn!("multicast cannot be received: {e}; nodes are found by --join alone until it can"),
        }
        tokio::time::sleep(LOOK_AGAIN * 6).await;
    };
    let (mut joined, mut buffer) = (BTreeSet::new(), vec![0; 65_536]);
    loop {
        join(&socket, v6, &mut joined);
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

/// Calls out on every interface and listens: from how many addresses did this machine hear itself? Others on the network
/// take such a call for a stranger's.
pub async fn multicast_comes_back() -> std::io::Result<usize> {
    let sockets = (receiver(false)?, receiver(true).ok());
    join(&sockets.0, false, &mut BTreeSet::new());
    if let Some(v6) = &sockets.1 {
        join(v6, true, &mut BTreeSet::new());
    }
    let call = format!("tombolo doctor {}", std::process::id());
    Sender { v6: true }.send(call.as_bytes());
    let mut heard = 0;
    for socket in [Some(sockets.0), sockets.1].into_iter().flatten() {
        let (mut from, until) = (BTreeSet::new(), tokio::time::Instant::now() + ECHO_WAIT);
        let mut buffer = [0; 64];
        while let Ok(received) = tokio::time::timeout_at(until, socket.recv_from(&mut buffer)).await {
            let (len, addr) = received?;
            if buffer[..len] == *call.as_bytes() {
                from.insert(addr.ip());
            }
        }
        heard += from.len();
    }
    Ok(heard)
}
