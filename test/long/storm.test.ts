import t from 'tap'
import { holdAndRestart, type Storm } from '../support/storm.ts'

t.setTimeout(3_600_000)

const DEVICES = Number(process.env.MUSTER_STORM_DEVICES ?? 10_000)

t.test(`${DEVICES} live sessions are held in one plan, and come back, twice`, async (t) => {
  const storm = await holdAndRestart(t, {
    devices: DEVICES,
    processes: 4,
    isPinned: true,
    data: process.env.MUSTER_STORM_DATA,
  })
  const { receipt, lost } = storm
  const { closedMs, seenMs, lagMs, back } = summaryOf(storm)
  t.comment(`closed, by the receipt, ms: ${say(closedMs)} (goal: max < 1000)`)
  t.comment(`until the devices had looked, which share a core, ms: ${say(seenMs)}`)
  t.comment(`event loop of the broker late meanwhile, ms: ${say(lagMs)} (goal: < 200)`)
  t.comment(`the others: ${say({ published: storm.published, lost })}; held ones refused: ${storm.refusals}`)
  t.comment(`back after the release, and after a restart (goal: < 120000 ms): ${say(back)}`)
  t.comment(JSON.stringify({ schemaVersion: 1, name: 'storm', devices: DEVICES, ...summaryOf(storm) }))
  t.equal(receipt.sessionsClosed, DEVICES)
  t.same(receipt.survivors, [])
  t.equal(lost, 0)
})

function summaryOf(storm: Storm) {
  const { receipt, closedMs, seenMs, holdLag, lost, published, refusals } = storm
  const at = (share: number) => Math.round(seenMs[Math.floor((seenMs.length - 1) * share)] ?? 0)
  const { releaseMs, reconnectMs, reconnectLag, reconnectCpuMs: cpuMs } = storm
  return {
    closedMs: { closed: receipt.sessionsClosed, ...receipt.closeMs, sinceRequest: closedMs },
    seenMs: { p50: at(0.5), p99: at(0.99), max: at(1) },
    lagMs: { p99: holdLag.p99, max: holdLag.max },
    ...{ lost, published, refusals },
    back: { releaseMs, reconnectMs, lagP99: reconnectLag.p99, lagMax: reconnectLag.max, cpuMs },
  }
}

function say(figures: Readonly<Record<string, number>>): string {
  return Object.entries(figures)
    .map(([name, figure]) => `${name} ${figure}`)
    .join(', ')
}
