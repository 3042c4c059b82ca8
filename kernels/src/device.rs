//! Which kind of device a tensor lives on.

use burn::backend::DispatchDevice;
use burn::tensor::Device;

/// Whether the device is flex, the native CPU backend, with or without autodiff.
pub fn is_flex(device: &Device) -> bool {
    fn flex(device: &DispatchDevice) -> bool {
        match device {
            DispatchDevice::Flex(_) => true,
            DispatchDevice::Autodiff(inner) => flex(inner),
            _ => false,
        }
    }
    flex(device.as_dispatch())
}
