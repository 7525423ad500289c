//! Addresses and SRV records, by `domain`'s stub resolver.

use crate::{ANSWER_WAIT, ProviderError};
use domain::base::iana::{Rcode, Rtype};
use domain::base::{Message, Name, ToName};
use domain::rdata::{A, Aaaa, Srv};
use domain::resolv::StubResolver;
use domain::resolv::stub::conf::{ResolvConf, ServerConf, Transport};
use membership::Place;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

type Answer = Message<bytes::Bytes>;

/// One question may take so long, each way.
const QUESTION_WAIT: Duration = Duration::from_secs(2);

struct Asker {
    /// By TCP, since a list may be longer than a datagram; and by UDP, for servers that know nothing else.
    ways: [StubResolver; 2],
    name: String,
}

/// All addresses of a name, or all targets of its SRV records. Every question must be answered: half an answer would have the other half
/// gone.
pub(crate) fn ask(name: &str, server: Option<SocketAddr>) -> Result<Vec<Place>, ProviderError> {
    let wrong = |why: &dyn std::fmt::Display| ProviderError::Dns { name: name.into(), why: why.to_string() };
    let asked: Name<Vec<u8>> = name.parse().map_err(|e| wrong(&e))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ProviderError::Run)?;
    let all = async {
        let ways =
            [Transport::Tcp, Transport::UdpTcp].map(|transport| StubResolver::from_conf(conf(server, transport)));
        let asker = Asker { ways, name: name.into() };
        if name.starts_with('_') { asker.services(&asked).await } else { asker.hosts(&asked, None).await }
    };
    runtime.block_on(async { tokio::time::timeout(ANSWER_WAIT, all).await }).map_err(|_| ProviderError::Late)?
}

fn conf(server: Option<SocketAddr>, transport: Transport) -> ResolvConf {
    let mut conf = match server {
        Some(server) => ResolvConf { servers: vec![ServerConf::new(server, transport)], ..ResolvConf::new() },
        // The system's.
        None => ResolvConf::default(),
    };
    conf.servers.iter_mut().for_each(|server| server.transport = transport);
    (conf.options.timeout, conf.options.attempts) = (QUESTION_WAIT, 1);
    conf.finalize();
    conf
}

impl Asker {
    fn wrong(&self, why: &dyn std::fmt::Display) -> ProviderError {
        ProviderError::Dns { name: self.name.clone(), why: why.to_string() }
    }

    async fn answer(&self, name: &impl ToName, what: Rtype) -> Result<Answer, ProviderError> {
        let [tcp, udp] = &self.ways;
        let answer = match tcp.query((name, what)).await {
            Ok(answer) => answer,
            Err(_) => udp.query((name, what)).await.map_err(|e| self.wrong(&e))?,
        };
        if answer.is_truncated() {
            return Err(self.wrong(&"the answer is cut off"));
        }
        let answer = answer.into_message();
        match answer.header().rcode() {
            Rcode::NOERROR => Ok(answer),
            other => Err(self.wrong(&other)),
        }
    }

    async fn hosts(&self, name: &impl ToName, port: Option<u16>) -> Result<Vec<Place>, ProviderError> {
        let mut places = Vec::new();
        let answer = self.answer(name, Rtype::A).await?;
        for record in answer.answer().map_err(|e| self.wrong(&e))?.limit_to_in::<A>() {
            let ip = IpAddr::V4(record.map_err(|e| self.wrong(&e))?.data().addr());
            places.push(Place { ip, port });
        }
        let answer = self.answer(name, Rtype::AAAA).await?;
        for record in answer.answer().map_err(|e| self.wrong(&e))?.limit_to_in::<Aaaa>() {
            let ip = IpAddr::V6(record.map_err(|e| self.wrong(&e))?.data().addr());
            places.push(Place { ip, port });
        }
        Ok(places)
    }

    async fn services(&self, name: &impl ToName) -> Result<Vec<Place>, ProviderError> {
        let answer = self.answer(name, Rtype::SRV).await?;
        let mut targets = Vec::new();
        for record in answer.answer().map_err(|e| self.wrong(&e))?.limit_to_in::<Srv<_>>() {
            let record = record.map_err(|e| self.wrong(&e))?;
            let target: Name<Vec<u8>> = record.data().target().to_name();
            // A lone root means that there is no such service.
            if !target.is_root() {
                targets.push((target, record.data().port()));
            }
        }
        let mut places = Vec::new();
        for (target, port) in targets {
            places.extend(self.hosts(&target, Some(port)).await?);
        }
        Ok(places)
    }
}
