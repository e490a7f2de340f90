import { X509Certificate } from 'node:crypto'
import t from 'tap'
import { until } from '../support/broker.ts'
import { enrollDevice, startEnrollment } from '../support/enrollment.ts'
import { connectPacket, openRaw, type RawClient } from '../support/mqtt-clients.ts'
import { invitedBroker, runBroker } from '../support/running-broker.ts'

t.test('an identity in two places, from the takeover to the alarm and the quarantine', async (t) => {
  const service = await startEnrollment(t)
  const broker = await runBroker(t, await invitedBroker(service, 'broker-1'))
  const { admin, deps, root } = service
  const endpoint = { port: broker.port, authority: { rootPem: root } } as Parameters<typeof openRaw>[0] // all it reads

  type Pair = Awaited<ReturnType<typeof enrollDevice>>
  const join = async ({ id, certificate, key }: Pair, localAddress: string): Promise<RawClient> => {
    const presented = { id, keyPem: key, chainPem: certificate + deps.authority.device.pem }
    const raw = await openRaw(endpoint, presented, { localAddress } as object) // tls.connect passes it on
    raw.send(connectPacket({ clientId: id }))
    return raw
  }
  /** Two with one identity throw each other out, three times. */
  const fight = async (pair: Pair) => {
    let last: RawClient | null = null
    for (const address of ['127.0.0.7', '127.0.0.8', '127.0.0.7', '127.0.0.8']) {
      const next = await join(pair, address)
      await next.next('connack')
      await last?.closed
      last = next
    }
    return last
  }

  t.test('the alarm is in the log, the status, the explanation and the audit log', async (t) => {
    const lamp = await enrollDevice(service, { id: 'lamp' })
    const last = await fight(lamp)
    await until(async () => (await admin.status()).cloneAlarms.length === 1)
    t.match((await admin.status()).cloneAlarms, [
      { device: 'lamp', fleet: 'default', alarms: 1, broker: 'broker-1', plan: null },
    ])
    const { steps, verdict } = await admin.explain('lamp')
    t.match(steps.find(({ step }) => step === 'copies')?.says, /^ALARM: 127\.0\.0\.\d and 127\.0\.0\.\d took/)
    t.equal(verdict, 'admitted', 'an alarm stops nobody by itself')
    const { serialNumber } = new X509Certificate(lamp.certificate)
    const asked = await admin.explain(serialNumber.toLowerCase())
    t.match(asked.steps.find(({ step }) => step === 'copies')?.says, /^ALARM/, 'asked for by its certificate')
    await until(async () =>
      (await deps.registry.listAudit(0, 10_000)).some(({ action }) => action === 'clone.alarm'),
    )
    await last?.ping()
    last?.socket.destroy()
  })

  t.test(
    'a fleet with quarantine holds the device, an operator can undo it, and nobody else is held',
    async (t) => {
      t.same(await admin.setQuarantine('default', { clones: true }), { fleet: 'default', clones: true })
      t.same(await admin.showQuarantine('default'), { fleet: 'default', clones: true })
      const [door, bell] = [
        await enrollDevice(service, { id: 'door' }),
        await enrollDevice(service, { id: 'bell' }),
      ]
      const other = await join(bell, '127.0.0.9')
      await other.next('connack')
      const last = await fight(door)
      await last?.closed
      let plan: string | null = null
      await until(async () => {
        const alarms = (await admin.status()).cloneAlarms
        plan = alarms.find(({ device }) => device === 'door')?.plan ?? null
        return plan !== null
      })
      t.match(await admin.explain('door'), { code: 'R-HELD', verdict: 'refused' })
      t.match(await admin.showPlan(String(plan)), { action: 'hold', state: 'applied', by: 'plane' })
      await admin.undoPlan(String(plan))
      const isBack = async () => {
        const raw = await join(door, '127.0.0.7')
        const connack = await raw.next('connack')
        raw.socket.destroy()
        return connack.cmd === 'connack' && connack.returnCode === 0
      }
      await until(isBack)
      await other.ping()
      other.socket.destroy()
    },
  )
})
