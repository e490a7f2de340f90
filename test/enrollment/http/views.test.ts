import t from 'tap'
import type { TSchema } from 'typebox'
import { Value } from 'typebox/value'
import * as api from '#shared/api'
import { enrollBroker, enrollDevice, newRequest, startEnrollment } from '../../support/enrollment.ts'

t.test('every reply of the admin API has the form that its schema says', async (t) => {
  const { admin, ...service } = await startEnrollment(t)
  const check = (name: string, schema: TSchema, value: unknown) => {
    const [fault] = Value.Errors(schema, value)
    t.ok(Value.Check(schema, value), `${name}: ${JSON.stringify(fault ?? 'ok')}`)
  }
  const each = (name: string, schema: TSchema, values: readonly unknown[]) => {
    t.ok(values.length > 0, name)
    for (const value of values) check(name, schema, value)
  }
  check('createFleet', api.FleetView, await admin.createFleet({ id: 'demo', synthetic: true }))
  check('createBatch', api.BatchView, await admin.createBatch({ id: 'demo-1', fleet: 'demo' }))
  check('createToken', api.TokenReply, await admin.createToken({ batch: 'demo-1', uses: 2 }))
  await enrollDevice({ admin, ...service }, { id: 'demo-0001', batch: 'demo-1' })
  await enrollDevice({ admin, ...service }, { id: 'valve-1' })
  await enrollBroker({ admin, ...service }, 'edge-1')
  check('reissueDevice', api.TokenReply, await admin.reissueDevice('valve-1'))
  check(
    'createService',
    api.CertificateReply,
    await admin.createService({ id: 'app', csr: (await newRequest()).csr }),
  )
  check('createApiToken', api.ApiTokenReply, await admin.createApiToken({ name: 'ci' }))
  check('inviteBroker', api.Invitation, await admin.inviteBroker())
  const plan = await admin.proposePlan({ action: 'hold', scope: { kind: 'device', id: 'valve-1' } })
  check('proposePlan', api.PlanView, plan)
  check('applyPlan', api.PlanView, await admin.applyPlan(plan.id, 1))
  check('receipt', api.Receipt, await admin.receipt(plan.id, 0))
  check('showPlan', api.PlanView, await admin.showPlan(plan.id))
  check('undoPlan', api.PlanView, await admin.undoPlan(plan.id))
  check('status', api.StatusView, await admin.status())
  check('showDevice', api.DeviceDetail, await admin.showDevice('valve-1'))
  check('listDevices', api.DevicePage, await admin.listDevices())
  check('explain', api.Explanation, await admin.explain('valve-1'))
  check('verifyAudit', api.AuditVerdict, await admin.verifyAudit())
  each('listFleets', api.FleetView, await admin.listFleets())
  each('listBatches', api.BatchView, await admin.listBatches())
  each('listTokens', api.TokenView, await admin.listTokens())
  each('listPlans', api.PlanView, await admin.listPlans())
  each('listBrokers', api.BrokerView, await admin.listBrokers())
  each('listApiTokens', api.ApiTokenView, await admin.listApiTokens())
  each('listAudit', api.AuditView, await admin.listAudit({ limit: 1000 }))
  t.same(await admin.clearDemo(), { devices: 1 })
  const ca = await service.client().send('GET', '/v1/ca')
  check('ca', api.CaReply, JSON.parse(ca.text))
  const problem = await service.client().send('POST', '/v1/renew', { json: {} })
  check('problem', api.Problem, JSON.parse(problem.text))
})

t.test('who did what is in the audit log, by the name of who did it', async (t) => {
  const { admin, ...service } = await startEnrollment(t)
  await admin.createFleet({ id: 'pumps' })
  const { token } = await admin.createApiToken({ name: 'ci' })
  const headers = { authorization: `Bearer ${token}` }
  const reply = await service.adminClient().send('POST', '/v1/batches', { headers, json: { id: 'line-1' } })
  t.equal(reply.status, 200)
  const entries = await admin.listAudit({ limit: 1000 })
  t.ok(entries.some(({ by, subject }) => by === 'operator:local' && subject.includes('pumps')))
  t.ok(entries.some(({ by, subject }) => by === 'operator:ci' && subject.includes('line-1')))
  const page = await admin.listAudit({ after: entries.at(-2)?.sequence ?? 0, limit: 1 })
  t.same(page, entries.slice(-1))
})
