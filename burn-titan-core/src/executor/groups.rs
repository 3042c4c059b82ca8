//! The ranks that a rank exchanges tensors with.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_titan_parallel::{Axis, CommError, Communicator, Mesh, OneRank, Reduction, Trace, World};

/// The groups of one rank, one for each purpose.
pub struct Groups {
    /// The ranks that share the parameters: each holds a shard of every unit.
    pub shard: Box<dyn Communicator>,
    /// The ranks that hold the same shard, one in each copy of the model.
    pub replicate: Box<dyn Communicator>,
    /// All ranks that read different samples.
    pub data: Box<dyn Communicator>,
    /// What this rank does, when it is asked for.
    pub trace: Trace,
}

impl Groups {
    /// The groups of a world of one rank.
    pub fn one() -> Self {
        let one = || Box::new(OneRank);
        Self { shard: one(), replicate: one(), data: one(), trace: Trace::default() }
    }

    /// The groups of this rank on a mesh of the world's ranks.
    ///
    /// # Errors
    /// If a group cannot be made.
    pub fn new(world: &World, mesh: &Mesh) -> Result<Self, CommError> {
        let along = |axis| mesh.group(world.rank(), axis);
        let data: Vec<usize> = (0..world.size()).collect();
        Ok(Self {
            shard: world.communicator("dp_shard", &along(Axis::DataShard))?,
            replicate: world.communicator("dp_replicate", &along(Axis::DataReplicate))?,
            data: world.communicator("dp", &data)?,
            trace: world.trace().clone(),
        })
    }

    /// Whether there are other ranks.
    pub fn several(&self) -> bool {
        self.data.size() > 1
    }

    /// The sums of counts over all ranks that read different samples.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn totals<const N: usize>(
        &self,
        counts: [usize; N],
        device: &Device,
    ) -> Result<[usize; N], CommError> {
        if !self.several() {
            return Ok(counts);
        }
        // Each as two numbers, for integers of devices have 32 bits.
        let halves = |count: usize| [(count >> 24) as i32, (count & 0xff_ffff) as i32];
        let parts: Vec<i32> = counts.into_iter().flat_map(halves).collect();
        let sum = self.data.all_reduce(integers(&parts, device).into(), Reduction::Sum).wait()?;
        let sum = host_integers(sum.int());
        Ok(std::array::from_fn(|i| ((sum[2 * i] as usize) << 24) + sum[2 * i + 1] as usize))
    }

    /// The largest of a number over all ranks that read different samples.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn largest(&self, value: i32, device: &Device) -> Result<i32, CommError> {
        if !self.several() {
            return Ok(value);
        }
        let most =
            self.data.all_reduce(integers(&[value], device).into(), Reduction::Max).wait()?;
        Ok(host_integers(most.int())[0])
    }

    /// The sum of a number over all ranks that read different samples, in the order of ranks.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn sum(&self, value: f64, device: &Device) -> Result<f64, CommError> {
        // As two numbers of single precision, whose sum is the number to 48 bits.
        let high = value as f32;
        let low = (value - f64::from(high)) as f32;
        Ok(self.all(&[high, low], device)?.into_iter().map(f64::from).sum())
    }

    /// What one of all ranks says.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn told_by(&self, rank: usize, text: &str, device: &Device) -> Result<String, CommError> {
        if !self.several() {
            return Ok(text.into());
        }
        let length = if self.data.rank() == rank { text.len() as i32 } else { 0 };
        let length = self.largest(length, device)? as usize;
        if length == 0 {
            return Ok(String::new());
        }
        // Not every device stores bytes.
        let mut bytes: Vec<i32> = text.bytes().map(i32::from).collect();
        bytes.resize(length, 0);
        let said = self.data.broadcast(integers(&bytes, device).into(), rank).wait()?.int();
        let bytes: Vec<u8> = host_integers(said).into_iter().map(|byte| byte as u8).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The numbers of every rank that reads different samples, in the order of ranks; each gives as many.
    ///
    /// # Errors
    /// If the exchange fails.
    pub fn all(&self, values: &[f32], device: &Device) -> Result<Vec<f32>, CommError> {
        if !self.several() {
            return Ok(values.to_vec());
        }
        let shard = super::on_device(values.to_vec(), device);
        let lengths = vec![values.len(); self.data.size()];
        Ok(super::on_host(self.data.all_gather_floats(shard, &lengths).wait()?))
    }
}

fn integers(values: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), (device, DType::I32))
}

fn host_integers(tensor: Tensor<1, Int>) -> Vec<i32> {
    tensor.into_data().try_into_vec::<i32>().expect("integers of 32 bits were sent")
}
