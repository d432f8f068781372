// What command `sweep` trains: the job of each adapter, as `train` would be given it alone.
#ifndef QLORA_PROTO_SWEEP_JOBS_H_
#define QLORA_PROTO_SWEEP_JOBS_H_

#include <string>
#include <vector>

#include "proto/job.pb.h"
#include "proto/job_check.h"
#include "proto/job_problem.h"

namespace qlora::proto {

struct SweepJob {
  std::string name;  // "r8-seed1"
  std::string path;  // of the job's field that asks for it, "sweep.adapter[2]" or "sweep.ranks"
  Job job;           // with its own output_dir, without `sweep`
};

// The adapters of `sweep.adapter` in order, then one for each combination of the lists: ranks
// outermost, seeds innermost. None where they are more than CheckSweep allows: a grid grows fast.
// `job` has its defaults.
std::vector<SweepJob> SweepJobs(const Job& job);

// What a job's result is held against: equal texts are equal samples. Empty: nothing.
std::string HeldOutData(const Job& job);

// What can be judged of `job.sweep` without opening a file; nothing where the job has none.
void CheckSweep(const Job& job, JobProblems& problems);

// Whether there is anything to train, for commands `sweep` and `plan`.
void CheckSweepIsAsked(const Job& job, JobProblems& problems);

// What command `sweep` needs beside what `train` does.
void CheckSweepCommand(const Job& job, JobProblems& problems);

}  // namespace qlora::proto

#endif  // QLORA_PROTO_SWEEP_JOBS_H_
