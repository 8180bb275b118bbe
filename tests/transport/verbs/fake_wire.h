// The data path of the device in memory. All but the four entry points are called with its mutex
// held.
#pragma once

#include "tests/transport/verbs/fake_objects.h"

namespace kvl::test {

int poll_fake_cq(ibv_cq* cq, int count_max, ibv_wc* out);
int arm_fake_cq(ibv_cq* cq, int solicited_only);
int post_fake_send(ibv_qp* qp, ibv_send_wr* request, ibv_send_wr** first_bad);
int post_fake_receive(ibv_srq* srq, ibv_recv_wr* request, ibv_recv_wr** first_bad);

void raise_fake_event(FakeDevice::Context& context, const ibv_async_event& event);
// To the error state; what is not done is flushed.
void stop_fake_qp(FakeDevice& fake, FakeDevice::Qp& qp);
// … and its owner is told why.
void break_fake_qp(FakeDevice& fake, FakeDevice::Qp& qp, ibv_event_type why);
// False: no receive buffer.
bool deliver_fake_message(FakeDevice::Qp& qp, const std::byte* bytes, std::size_t count);

}  // namespace kvl::test
