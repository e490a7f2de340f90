import { rmSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { layout } from '#shared/layout'
import { Years } from '../support/years.ts'

const ISSUING_DAYS = 60

/** The steps of "When the CAs have ended" in docs/rollover.md, with real processes. */
t.test(
  'a plane whose CAs have ended, and that was off since, comes back by the way that it names',
  async (t) => {
    const years = await Years.start(t, {
      ...{ rootDays: 3650, issuingDays: ISSUING_DAYS },
      ...{ deviceDays: 10, devices: 1 },
    })
    const [before] = await years.devices(1)
    years.pass(ISSUING_DAYS + 1)
    await years.stop()
    years.pass(100)
    await t.rejects(years.startEnrollment(), /the last that it did here was at .*--clock-is-right/)
    const ended = /it ended at .*no other has followed.*When the CAs have ended/
    await t.rejects(years.startEnrollment('--clock-is-right'), ended)

    years.pass(-102) // a day before they end
    await years.startEnrollment('--clock-is-right')
    t.match(await years.muster('ca', 'rollover', 'start'), { status: 0, state: 'published' })
    await years.stop()

    years.pass(102)
    await t.rejects(years.startEnrollment(), /--clock-is-right/)
    await years.startEnrollment('--clock-is-right')
    t.match((await years.rollover()).rollover, { state: 'cut-over' })
    rmSync(join(layout(years.data).broker, 'broker.crt'))
    await years.startBroker()
    const { token } = await years.muster<{ token: string }>('device', 'reissue', 'pump-0001')
    await years.startDevices({ directory: 'reissued', count: 1, token })
    const [after] = await years.devices(1)
    t.equal(after?.id, before?.id)
    t.not(after?.issuer, before?.issuer, 'the device is back, with a certificate of the new CA')
    await years.stop()
    await years.startEnrollment()
  },
)
