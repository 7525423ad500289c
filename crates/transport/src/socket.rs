use crate::TransportError;
use base::PORT;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

/// How many ports after it are tried when none was asked for.
const PORTS_TRIED: u16 = 100;

/// A port of ours, for both TCP and UDP.
pub struct Bound {
    pub(crate) tcp: TcpListener,
    pub(crate) udp: UdpSocket,
    /// What was bound.
    pub addr: SocketAddr,
}

/// Binds the address asked for, or the default port on all addresses, or the next free one.
pub fn bind(listen: Option<SocketAddr>) -> Result<Bound, TransportError> {
    if let Some(addr) = listen {
        // Of a free port for TCP the other half may be taken.
        let tries = if addr.port() == 0 { PORTS_TRIED } else { 1 };
        let mut bound = bind_one(addr);
        for _ in 1..tries {
            if !matches!(&bound, Err(e) if e.kind() == std::io::ErrorKind::AddrInUse) {
                break;
            }
            bound = bind_one(addr);
        }
        return bound.map_err(|source| TransportError::Listen { addr, source });
    }
    // Both families through one socket, where the system has both.
    let any: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
    let any = any.into_iter().find(|ip| bind_one((*ip, 0).into()).is_ok()).unwrap_or(any[1]);
    let free = (PORT..PORT + PORTS_TRIED).find_map(|port| bind_one((any, port).into()).ok());
    free.ok_or(TransportError::NoPort { from: PORT })
}

/// An address of IPv4 as a socket of IPv6 takes it.
pub(crate) fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        v6 => v6,
    }
}

/// An address of IPv4 that came through a socket of IPv6, as everybody else writes it.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => (ip, addr.port()).into(),
        IpAddr::V6(_) => addr,
    }
}

fn bind_one(addr: SocketAddr) -> std::io::Result<Bound> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    // A restarted node takes its port back at once.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(1024)?;
    let tcp: TcpListener = socket.into();
    let addr = tcp.local_addr()?;
    let udp = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::DGRAM, None)?;
    if addr.is_ipv6() {
        udp.set_only_v6(!addr.ip().is_unspecified())?;
    }
    udp.bind(&addr.into())?;
    let udp: UdpSocket = udp.into();
    tcp.set_nonblocking(true)?;
    udp.set_nonblocking(true)?;
    Ok(Bound { tcp, udp, addr })
}

/// The address of ours that others would use, of what is bound: that of the interface which leads out, or loopback.
pub fn advertise(bound: SocketAddr) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return bound;
    }
    let usable = crate::multicast::addresses().into_iter().find(|ip| !ip.is_loopback());
    SocketAddr::new(usable.unwrap_or(Ipv4Addr::LOCALHOST.into()), bound.port())
}

impl Bound {
    /// What to tell others when an unspecified address was bound.
    pub fn advertise(&self) -> SocketAddr {
        advertise(self.addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_taken_is_an_error_that_names_it() {
        let held = bind(Some(([127, 0, 0, 1], 0).into())).expect("a free port");
        match bind(Some(held.addr)) {
            Err(e @ TransportError::Listen { .. }) => assert!(e.to_string().contains(&held.addr.to_string()), "{e}"),
            _ => panic!("bound twice"),
        }
    }
}
