import t from 'tap'
import { hammerBroker } from '../support/hammer.ts'

t.setTimeout(3_600_000)

const DEVICES = Number(process.env.MUSTER_HAMMER_DEVICES ?? 1_000)
const ATTEMPTS = Number(process.env.MUSTER_HAMMER_ATTEMPTS ?? 30)

t.test(`${DEVICES} revoked devices come back without a pause, and nobody else suffers`, async (t) => {
  const { count, ms, lag, newcomersMs, published, lost, kept, codes } = await hammerBroker(t, {
    ...{ devices: DEVICES, attempts: ATTEMPTS, processes: 2 },
  })
  const rate = Math.round((DEVICES * ATTEMPTS * 1_000) / ms)
  t.comment(`${DEVICES * ATTEMPTS} attempts, ${rate} a second: ${JSON.stringify(count)}`)
  t.comment(`event loop of the broker late by p99 ${lag.p99}, max ${lag.max} ms; CPU ${lag.cpuMs} ms in all`)
  const at = (share: number) => Math.round(newcomersMs[Math.floor((newcomersMs.length - 1) * share)] ?? 0)
  t.comment(`${newcomersMs.length} connections of a healthy device, ms p50 ${at(0.5)}, max ${at(1)}`)
  t.comment(`the others published ${published} messages; refusals kept: ${JSON.stringify(kept)}`)
  t.equal(count.accepted, 0)
  t.equal(lost, 0)
  t.ok(kept.most <= 20)
  t.same(codes, ['R-REVOKED'])
})
