//! The procedures of the remote program that this client calls, or is sent, with their numbers
//! (`enum remote_procedure` of `src/remote/remote_protocol.x`).

/// How dear a call is to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// May wait for a domain's job or its QEMU monitor, and so hang for as long as that QEMU does.
    Monitor,
    /// Answered from what the daemon knows by itself.
    JobFree,
}

macro_rules! procedures {
    ($($name:ident = $number:literal, $class:ident;)*) => {
        /// A procedure of the remote program.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(non_camel_case_types, reason = "the names are libvirt's own, as its documents and logs have them")]
        pub(crate) enum Procedure { $($name = $number,)* }

        impl Procedure {
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            pub(crate) const fn from_number(number: i32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// The class that the call has whatever its arguments are.
            pub(crate) const fn class(self) -> Class {
                match self { $(Self::$name => Class::$class,)* }
            }
        }
    };
}

procedures! {
    CONNECT_OPEN = 1, JobFree;
    CONNECT_CLOSE = 2, JobFree;
    CONNECT_GET_TYPE = 3, JobFree;
    CONNECT_GET_VERSION = 4, JobFree;
    NODE_GET_INFO = 6, JobFree;
    DOMAIN_GET_XML_DESC = 14, JobFree;
    DOMAIN_GET_INFO = 16, JobFree;
    CONNECT_GET_HOSTNAME = 59, JobFree;
    CONNECT_SUPPORTS_FEATURE = 60, JobFree;
    DOMAIN_BLOCK_STATS = 64, Monitor;
    DOMAIN_INTERFACE_STATS = 65, JobFree;
    AUTH_LIST = 66, JobFree;
    AUTH_SASL_INIT = 67, JobFree;
    AUTH_SASL_START = 68, JobFree;
    AUTH_SASL_STEP = 69, JobFree;
    AUTH_POLKIT = 70, JobFree;
    CONNECT_GET_LIB_VERSION = 157, JobFree;
    DOMAIN_MEMORY_STATS = 159, Monitor;
    NODE_GET_CPU_STATS = 227, JobFree;
    NODE_GET_MEMORY_STATS = 228, JobFree;
    DOMAIN_GET_CPU_STATS = 262, Monitor;
    DOMAIN_GET_DISK_ERRORS = 263, Monitor;
    CONNECT_LIST_ALL_DOMAINS = 273, JobFree;
    DOMAIN_SET_MEMORY_STATS_PERIOD = 308, Monitor;
    CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY = 316, JobFree;
    DOMAIN_EVENT_CALLBACK_LIFECYCLE = 318, JobFree;
    DOMAIN_EVENT_CALLBACK_IO_ERROR = 322, JobFree;
    DOMAIN_EVENT_CALLBACK_BALLOON_CHANGE = 331, JobFree;
    DOMAIN_EVENT_CALLBACK_DEVICE_REMOVED = 333, JobFree;
    CONNECT_GET_ALL_DOMAIN_STATS = 344, Monitor;
    DOMAIN_EVENT_CALLBACK_AGENT_LIFECYCLE = 348, JobFree;
    DOMAIN_EVENT_CALLBACK_DEVICE_ADDED = 354, JobFree;
}
