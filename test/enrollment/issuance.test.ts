import t from 'tap'
import type { CertificateReply } from '#shared/api'
import type { Step } from '../../enrollment/deps.ts'
import { randomPool } from '../../enrollment/random-pool.ts'
import { newRequest, startEnrollment } from '../support/enrollment.ts'

t.test('what an issuance that is cut short leaves depends on where the CA key is', async (t) => {
  const cut: { at: Step | null } = { at: null }
  const reached = (step: Step) => {
    if (step === cut.at) throw new Error('cut')
  }
  const service = await startEnrollment(t, { reached })
  const { admin, deps } = service
  const client = service.client()
  const used = async () => (await admin.listTokens('lab')).at(-1)?.used

  /** Cuts the first request after a step; what is spent then, and what the same request gets. */
  const play = async (id: string, step: Step) => {
    const { token } = await admin.createToken({ batch: 'lab', uses: 2 })
    const { csr } = await newRequest(id)
    const ask = () => client.send('POST', '/v1/enroll', { json: { token, csr } })
    cut.at = step
    t.equal((await ask()).status, 500)
    cut.at = null
    const spent = await used()
    const seen = await deps.registry.showDevice(id, Date.now()).catch(() => null)
    const reply = await ask()
    const { serial }: CertificateReply = JSON.parse(reply.text)
    t.equal((await ask()).text, reply.text, 'and once more, as after a lost reply')
    t.equal(await used(), 1)
    return { spent, serial, before: seen?.certificates[0]?.serial ?? null }
  }

  await t.test('in memory: signed within the commit, so that before it there is nothing', async (t) => {
    t.match(await play('near-2', 'enroll.2'), { spent: 0, before: null })
    t.match(await play('near-3', 'enroll.3'), { spent: 0, before: null })
    const { spent, serial, before } = await play('near-4', 'enroll.4')
    t.equal(spent, 1)
    t.equal(before, serial, 'after it there is the certificate')
  })

  await t.test('elsewhere: recorded first, signed then, and taken up again', async (t) => {
    const { signer } = deps.authority.device
    const { signNow } = signer
    Object.assign(signer, { signNow: undefined })
    t.teardown(() => Object.assign(signer, { signNow }))
    for (const step of ['enroll.2', 'enroll.3', 'enroll.4'] as const) {
      const { spent, serial, before } = await play(`far-${step.at(-1)}`, step)
      t.equal(spent, 1, 'the use is spent')
      t.equal(before, serial, 'and the serial is that of the reservation')
    }
  })
})

t.test('random octets come out of a pool once each, and none stays in it', async (t) => {
  const pools: Buffer[] = []
  let next = 0
  const random = randomPool((pool) => {
    pools.push(pool)
    for (let at = 0; at < pool.length; at += 4) pool.writeUInt32BE(++next, at)
  })
  const given = Array.from({ length: 3_000 }, (_, index) => random([16, 8, 4][index % 3] ?? 4))
  const words = given.flatMap((octets) =>
    Array.from({ length: octets.length / 4 }, (_, at) => octets.readUInt32BE(4 * at)),
  )
  t.equal(new Set(words).size, words.length, 'nothing comes twice')
  t.equal(words.indexOf(0), -1, 'nothing comes from what was erased')
  const left = new Set(Array.from({ length: 1_024 }, (_, at) => pools.at(-1)?.readUInt32BE(4 * at)))
  t.notOk(
    words.some((word) => left.has(word)),
    'what was given out is gone from the pool',
  )
  t.equal(random(10_000).length, 10_000, 'more than a pool holds is drawn for itself')
  const real = randomPool()
  t.notSame(real(16), real(16))
})
