/** The benches of the broker with their peers, as short as they can be: what they say of speed counts for nothing here. */
import t from 'tap'
import { connect, resume } from '../../bench/handshakes.ts'
import type { Bench, BenchContext } from '../../bench/harness.ts'
import { memory } from '../../bench/memory.ts'

/** One rehearsal and one run, of so small a share of the work. */
async function play(bench: Bench, effort: number) {
  const undos: Parameters<BenchContext['ended']>[0][] = []
  const context = {
    runs: 1,
    effort,
    say: () => {},
    ended: (undo: (typeof undos)[0]) => void undos.push(undo),
  }
  try {
    return await bench.run(context)
  } finally {
    for (let undo = undos.pop(); undo; undo = undos.pop()) await undo()
  }
}

t.test('connections are compared with mosquitto, nats-server and Node, fresh and resumed', async (t) => {
  for (const bench of [connect, resume]) {
    const { ours, peers, ratio, load } = await play(bench, 0.03)
    t.match(ours, { name: 'muster', runs: [Number] })
    t.match(
      peers.map(({ name }) => name),
      ['mosquitto', 'nats-server', 'bare Node TLS'],
    )
    t.ok((ratio ?? 0) > 0)
    t.strictSame(Object.keys(load ?? {}).length, 4, 'the load of every side is told')
  }
})

t.test('memory is compared in processes that have just started, with all connections open', async (t) => {
  const { better, peers, facts } = await play(memory, 0.02)
  t.equal(better, 'lower')
  t.match(
    peers.map(({ name, value }) => [name, value > 0]),
    [
      ['mosquitto', true],
      ['nats-server', true],
    ],
  )
  t.match(facts, { connections: { value: 100 } })
})
